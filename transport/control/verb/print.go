package verb

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Print prints the result of a verb on standard output: v as JSON with
// --json, or else what human writes.
func Print(cmd *cobra.Command, v any, human func(w io.Writer)) error {
	out := cmd.OutOrStdout()
	if JSON(cmd) {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("print result: %w", err)
		}
		return nil
	}
	w := &screen{w: out, colour: colourful(out), width: width(out)}
	human(w)
	if w.err != nil {
		return fmt.Errorf("print result: %w", w.err)
	}
	return nil
}

// screen is where people read; it remembers the first error.
type screen struct {
	w      io.Writer
	colour bool
	width  int // in characters; 0: no limit
	err    error
}

func (s *screen) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	var n int
	n, s.err = s.w.Write(p)
	return n, s.err
}

// colourful says whether w is a terminal that wants colours (no-color.org).
func colourful(w io.Writer) bool {
	return onTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// width is how many characters a line of w holds, 0 if it is no terminal.
func width(w io.Writer) int {
	if !onTerminal(w) {
		return 0
	}
	n, _, _ := term.GetSize(int(w.(*os.File).Fd()))
	return n
}

// onTerminal says whether a person sits at the other end of stream.
func onTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Time prints a time for people, in UTC; the zero time is "-".
func Time(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// clean takes out what would move the cursor: names and messages come from
// other machines. Newlines stay only where lines says so.
func clean(s string, lines bool) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || lines && r == '\n' {
			return r
		}
		return '\uFFFD'
	}, s)
}
