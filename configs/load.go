package configs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// A Program is the configuration of one program: *Agent, *Gate or *Server.
type Program interface {
	// setDefaults makes it what the embedded file says.
	setDefaults()
	// check calls report for each value that cannot be used.
	check(report report)
	// defaultPath is where the file is when nobody names one.
	defaultPath() string
}

var (
	_ Program = (*Agent)(nil)
	_ Program = (*Gate)(nil)
	_ Program = (*Server)(nil)
)

// report takes the dotted key and what is wrong with its value.
type report func(key, format string, args ...any)

// An Error is what is wrong with a configuration file.
type Error struct {
	// File and, where it is known, Line (from 1) and Key.
	File string
	Line int
	Key  string
	// Message says what is wrong, Next what to do.
	Message, Next string

	cause error
}

// Error is FILE:LINE: message.
func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.File, e.Message)
}

// Unwrap returns the error of the file system, if that is what it was.
func (e *Error) Unwrap() error { return e.cause }

// ProblemKind and NextStep tell the command line how to show it.
func (e *Error) ProblemKind() string { return "config" }
func (e *Error) NextStep() string    { return e.Next }

// Load sets cfg to the defaults and then to what the file at path says. The
// empty path is the program's default path, where the file may be missing.
// Every error is an *Error, or several joined.
func Load(path string, cfg Program) error {
	named := path != ""
	if !named {
		path = cfg.defaultPath()
	}
	data, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		cfg.setDefaults()
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &Error{File: path, Message: "there is no such file", cause: err,
			Next: "name an existing file with --config, or leave the flag out for the defaults"}
	case err != nil:
		return &Error{File: path, Message: err.Error(), cause: err,
			Next: "make the file readable for this user"}
	}
	return Parse(path, data, cfg)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fmt.Errorf("longer than %d bytes", MaxFile)
	}
	return data, err
}

// Parse is Load for a file's content; the name is for messages only.
func Parse(name string, data []byte, cfg Program) error {
	cfg.setDefaults()
	d := decoder{file: name}
	if d.decode(data, cfg); len(d.errs) == 0 {
		cfg.check(func(key, format string, args ...any) {
			d.errs = append(d.errs, &Error{File: name, Line: d.lines[key], Key: key,
				Message: key + ": " + fmt.Sprintf(format, args...), Next: "correct the value; the default file explains every key"})
		})
	}
	if len(d.errs) == 1 {
		return d.errs[0]
	}
	return errors.Join(d.errs...)
}
