package verb

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Lint walks every verb of the program and says what its help lacks: each
// needs Short, Long and an Example that begins with the verb itself, each flag
// a description, each argument a name in capitals. For tests.
func (f *Frame) Lint() []error {
	started := false
	prepare(f.root, &started)
	var list []error
	walk(f.root, func(cmd *cobra.Command) {
		complain := func(format string, args ...any) {
			list = append(list, fmt.Errorf("%s: %s", cmd.CommandPath(), fmt.Sprintf(format, args...)))
		}
		lintTexts(cmd, complain)
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				complain("flag --%s has no description", f.Name)
			}
		})
	})
	return list
}

// isArgument says whether s is NAME, NAME... or one of them in brackets.
func isArgument(s string) bool {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		s = strings.TrimSuffix(inner, "]")
	}
	s = strings.TrimSuffix(s, "...")
	return s != "" && 'A' <= s[0] && s[0] <= 'Z' && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-") == ""
}

func lintTexts(cmd *cobra.Command, complain func(string, ...any)) {
	if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.Contains(cmd.Short, "\n") {
		complain("Short is missing, ends with a full stop or has two lines")
	}
	if cmd.Long == "" {
		complain("Long is missing")
	}
	for _, w := range strings.Fields(cmd.Use)[1:] {
		if !isArgument(w) {
			complain("argument %q in Use is not NAME, [NAME] or NAME...", w)
		}
	}
	if cmd.HasSubCommands() || !cmd.Runnable() {
		return
	}
	if !strings.Contains(cmd.Example, cmd.CommandPath()) {
		complain("Example is missing or does not show `%s`", cmd.CommandPath())
	}
}

// walk visits cmd and everything below it but what cobra made.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	if isCobras(cmd) {
		return
	}
	visit(cmd)
	for _, c := range cmd.Commands() {
		walk(c, visit)
	}
}
