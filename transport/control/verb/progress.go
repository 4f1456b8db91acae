package verb

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Progress shows how long work goes on. With --json each step is one line of
// JSON on standard output. For people it goes to standard error: on a terminal
// a step overwrites the one before, elsewhere each has its line.
type Progress struct {
	json  *json.Encoder // nil without --json
	w     io.Writer
	tty   bool
	dirty bool // a step stands on the terminal's line
}

// NewProgress makes one for a verb. End it before printing anything else.
func NewProgress(cmd *cobra.Command) *Progress {
	p := &Progress{w: cmd.ErrOrStderr()}
	p.tty = onTerminal(p.w)
	if JSON(cmd) {
		p.json = json.NewEncoder(cmd.OutOrStdout())
		p.json.SetEscapeHTML(false)
	}
	return p
}

// Live says whether a person looks at a terminal, on which a step overwrites the
// one before: a display that counts is for it only.
func (p *Progress) Live() bool { return p.json == nil && p.tty }

// Fits says whether that many columns and lines fit a Live terminal.
func (p *Progress) Fits(columns, lines int) bool {
	if !p.Live() {
		return false
	}
	w, h, err := term.GetSize(int(p.w.(*os.File).Fd()))
	return err == nil && columns <= w && lines <= h
}

// Data is for programs only.
func (p *Progress) Data(v any) error {
	if p.json == nil {
		return nil
	}
	return p.json.Encode(v)
}

// Passing is Step for one of so many that a log need not have it.
func (p *Progress) Passing(v any, format string, args ...any) error {
	if p.json == nil && !p.tty {
		return nil
	}
	return p.Step(v, format, args...)
}

// Step shows the present step: v with --json, the text for people.
func (p *Progress) Step(v any, format string, args ...any) error {
	if p.json != nil {
		return p.json.Encode(v)
	}
	text := clean(fmt.Sprintf(format, args...), false)
	if !p.tty {
		_, err := fmt.Fprintln(p.w, text)
		return err
	}
	p.dirty = true
	_, err := fmt.Fprintf(p.w, "\r\x1b[K%s", text)
	return err
}

// Line shows something that stays: an operator code, a result.
func (p *Progress) Line(v any, format string, args ...any) error {
	p.End()
	if p.json != nil {
		return p.json.Encode(v)
	}
	_, err := fmt.Fprintln(p.w, clean(fmt.Sprintf(format, args...), true))
	return err
}

// End wipes the step that stands on the line.
func (p *Progress) End() {
	if p.dirty {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.dirty = false
	}
}
