package verb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

// jsonProblem is how a problem looks with --json, on standard error:
// {"error":{"kind":…,"message":…,"next":…,"exit":…}}.
type jsonProblem struct {
	*control.Problem
	Exit int `json:"exit"`
}

// printProblem prints `program: what` and, on a line of its own, what to do.
func printProblem(w io.Writer, program string, p *control.Problem, asJSON bool) {
	p = plainWords(p)
	if asJSON {
		json.NewEncoder(w).Encode(map[string]jsonProblem{"error": {p, p.Kind.Exit()}})
		return
	}
	fmt.Fprintf(w, "%s: %s\n", program, clean(p.Message, true))
	if p.Next != "" {
		fmt.Fprintf(w, "  next: %s\n", clean(p.Next, true))
	}
}

// Exit ends a verb that has printed its result with an exit code of its own,
// such as the worst of several findings; 0 is nil. Its help says which there are.
func Exit(code int) error {
	if code == 0 {
		return nil
	}
	return exit(code)
}

type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// plainWords replaces what the standard library says about a context.
func plainWords(p *control.Problem) *control.Problem {
	switch {
	case errors.Is(p, context.Canceled):
		return control.Problemf(p.Kind, p.Next, "interrupted")
	case errors.Is(p, context.DeadlineExceeded):
		return control.Problemf(p.Kind, "try again", "no answer in time")
	}
	return p
}

// exitCodes is the help topic; it is no verb.
func exitCodes() *cobra.Command {
	var b strings.Builder
	b.WriteString("Every verb ends with one of these codes. With --json the kind is in error.kind.\n\n")
	fmt.Fprintf(&b, "  %4d  %-12s %s\n", 0, "", "done")
	for _, k := range control.Kinds() {
		fmt.Fprintf(&b, "  %4d  %-12s %s\n", k.Exit, k.Kind, k.Meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: strings.TrimRight(b.String(), "\n")}
}
