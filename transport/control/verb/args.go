package verb

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

// Group makes a verb that only holds others: `credential`.
func Group(name, short, long string, verbs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: name, Short: short, Long: long, DisableFlagsInUseLine: true}
	g.AddCommand(verbs...)
	return g
}

// prepare gives every verb what its author need not write: arguments checked
// against the Use line, groups that know what they do not hold, and the mark
// that tells a wrong command line from a verb that failed.
func prepare(cmd *cobra.Command, started *bool) {
	for _, c := range cmd.Commands() {
		prepare(c, started)
	}
	if !cmd.Runnable() && cmd.HasSubCommands() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = group
		return
	}
	if cmd.RunE == nil || isCobras(cmd) {
		return
	}
	if cmd.Args == nil {
		cmd.Args = fromUse
	}
	if !cmd.LocalNonPersistentFlags().HasFlags() {
		cmd.DisableFlagsInUseLine = true
	}
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		*started = true
		return run(cmd, args)
	}
}

// isCobras says whether cobra made the verb: help and completion.
func isCobras(cmd *cobra.Command) bool {
	for c := cmd; c.HasParent(); c = c.Parent() {
		if c.Name() == "completion" || c.Name() == "help" || strings.HasPrefix(c.Name(), "__") {
			return true
		}
	}
	return false
}

// group runs a verb that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if v, _ := cmd.Flags().GetBool(versionFlag); v && !cmd.HasParent() {
		verb, _, err := cmd.Find([]string{versionFlag})
		if err != nil {
			return err
		}
		verb.SetContext(cmd.Context())
		return verb.RunE(verb, nil)
	}
	if len(args) == 0 {
		return cmd.Help()
	}
	next := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		next = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])
	}
	return control.Problemf(control.Usage, next, "unknown verb `%s %s`", cmd.CommandPath(), args[0])
}

// fromUse checks arguments against the Use line: "fetch ADDRESS [NAME]" takes
// one or two, "remove TERMINAL..." one or more.
func fromUse(cmd *cobra.Command, args []string) error {
	words := strings.Fields(cmd.Use)[1:]
	required, most := 0, 0
	for _, w := range words {
		if strings.HasSuffix(strings.Trim(w, "[]"), "...") {
			most = len(args)
		}
		if !strings.HasPrefix(w, "[") {
			required++
		}
	}
	most = max(most, len(words))
	next := fmt.Sprintf("usage: %s; see `%s --help`", cmd.UseLine(), cmd.CommandPath())
	if len(args) < required {
		return control.Problemf(control.Usage, next, "missing %s", strings.TrimSuffix(words[len(args)], "..."))
	}
	if len(args) > most {
		return control.Problemf(control.Usage, next, "`%s` is one argument too many", args[most])
	}
	return nil
}
