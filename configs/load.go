package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
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
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		return explain(name, err, cfg)
	}
	var list []error
	add := func(next string) report {
		return func(key, format string, args ...any) {
			list = append(list, &Error{File: name, Line: lineOf(data, key), Key: key,
				Message: fmt.Sprintf(format, args...), Next: next})
		}
	}
	checkNames(data, cfg, add("correct or remove the key"))
	bad := add("correct the value; the default file explains every key")
	cfg.check(func(key, format string, args ...any) { bad(key, key+": "+format, args...) })
	if len(list) == 1 {
		return list[0]
	}
	return errors.Join(list...)
}

// explain puts the decoder's errors into words with file and line.
func explain(name string, err error, cfg Program) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var list []error
		for _, e := range strict.Errors {
			line, _ := e.Position()
			key := e.Key()
			list = append(list, &Error{File: name, Line: line, Key: strings.Join(key, "."),
				Message: fmt.Sprintf(unknownKey, strings.Join(key, "."), strings.Join(knownKeys(cfg, key), ", ")),
				Next:    "correct or remove the key"})
		}
		if len(list) == 1 {
			return list[0]
		}
		return errors.Join(list...)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := e.Position()
		msg := strings.TrimPrefix(e.Error(), "toml: ")
		if m, _, ok := strings.Cut(msg, " into struct field"); ok { // what follows names Go types
			msg = strings.Replace(m, "cannot decode", "this cannot be a", 1)
		}
		if key := strings.Join(e.Key(), "."); key != "" {
			msg = key + ": " + msg
		}
		return &Error{File: name, Line: line, Key: strings.Join(e.Key(), "."), Message: msg, Next: "correct the line", cause: err}
	}
	return &Error{File: name, Message: strings.TrimPrefix(err.Error(), "toml: "), Next: "correct the file", cause: err}
}
