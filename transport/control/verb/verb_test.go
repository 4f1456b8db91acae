package verb

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

// demo is a program with one verb of each sort.
func demo() *Frame {
	f := New("demo", "A program", "A program that shows the frame.", "1.2.3")
	f.Add(
		Group("credential", "Credentials of this terminal", "What this terminal holds.",
			&cobra.Command{
				Use: "show ID [FIELD]", Short: "Show one credential", Long: "Shows one.",
				Example: "  demo credential show maps-1",
				RunE: func(cmd *cobra.Command, args []string) error {
					if args[0] == "none" {
						return control.Problemf(control.NotFound, "list them with `demo credential list`", "no credential %q", args[0])
					}
					if args[0] == "odd" {
						return Exit(23)
					}
					return Print(cmd, map[string]string{"id": args[0]}, func(w io.Writer) {
						t := NewTable(w, "ID", "STATE")
						t.Row(args[0], Good("in force"))
						t.Row("x\x1b[2J", Bad("expired"))
						t.Flush("nothing")
					})
				},
			}),
		&cobra.Command{
			Use: "fail", Short: "Fail as it should not", Long: "Fails.", Example: "  demo fail",
			RunE: func(*cobra.Command, []string) error { return fmt.Errorf("disk on fire") },
		},
		&cobra.Command{
			Use: "secret", Short: "Ask", Long: "Asks twice.", Example: "  demo secret",
			RunE: func(cmd *cobra.Command, _ []string) error {
				for range 2 {
					s, err := ReadSecret(cmd, "Operator code: ")
					if err != nil {
						return err
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%d ", len(s))
				}
				return nil
			},
		},
	)
	return f
}

// try runs a command line and returns its exit code and what it printed.
func try(t *testing.T, stdin, line string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = demo().Run(t.Context(), strings.Fields(line), strings.NewReader(stdin), &o, &e)
	return code, o.String(), e.String()
}

func TestProblemsAndExitCodes(t *testing.T) {
	for _, c := range []struct {
		line   string
		code   int
		stderr string
	}{
		{"credential show", 2, "demo: missing ID\n  next: usage: demo credential show ID [FIELD]; see `demo credential show --help`\n"},
		{"credential show a b c", 2, "demo: `c` is one argument too many\n  next: usage: demo credential show ID [FIELD]; see `demo credential show --help`\n"},
		{"credential shwo", 2, "demo: unknown verb `demo credential shwo`\n  next: did you mean `demo credential show`?\n"},
		{"credental show x", 2, "demo: unknown verb `demo credental`\n  next: did you mean `demo credential`?\n"},
		{"zzz", 2, "demo: unknown verb `demo zzz`\n  next: see `demo --help`\n"},
		{"fail --nope", 2, "demo: unknown flag: --nope\n  next: see `demo fail --help`\n"},
		{"fail now", 2, "demo: `now` is one argument too many\n  next: usage: demo fail; see `demo fail --help`\n"},
		{"credential show none", 3, "demo: no credential \"none\"\n  next: list them with `demo credential list`\n"},
		{"fail", 1, "demo: disk on fire\n"},
		{"credential show odd", 23, ""},
		{"fail --json", 1, `{"error":{"kind":"internal","message":"disk on fire","exit":1}}` + "\n"},
		{"fail --nope --json", 2, `{"error":{"kind":"usage","message":"unknown flag: --nope","next":"see ` + "`demo fail --help`" + `","exit":2}}` + "\n"},
		{"credential show x", 0, ""},
		{"credential", 0, ""},
		{"", 0, ""},
	} {
		code, out, stderr := try(t, "", c.line)
		if code != c.code || stderr != c.stderr {
			t.Errorf("demo %s: exit %d, want %d; stderr\n%s\nwant\n%s", c.line, code, c.code, stderr, c.stderr)
		}
		if code != 0 && out != "" {
			t.Errorf("demo %s: failed, but printed %q", c.line, out)
		}
	}
}
