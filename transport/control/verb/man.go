package verb

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kagimori/kagimori/transport/control"
)

// manVerb writes the man pages. It is hidden: packagers run it.
func (f *Frame) manVerb() *cobra.Command {
	name := f.root.Name()
	return &cobra.Command{
		Use: "man DIRECTORY", Hidden: true,
		Short:   "Write the man pages of this program",
		Long:    "Writes one man page of section 1 for the program and each verb into a directory.",
		Example: "  " + name + " man /usr/share/man/man1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.writeMan(cmd.Root(), args[0])
		},
	}
}

func (f *Frame) writeMan(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd != f.root && isCobras(cmd) {
		return nil
	}
	path := filepath.Join(dir, manName(cmd)+".1")
	if err := os.WriteFile(path, f.manPage(cmd), 0o644); err != nil {
		return control.Problemf(control.BadInput, "name a directory that exists and can be written", "write man page: %w", err)
	}
	for _, c := range cmd.Commands() {
		if err := f.writeMan(c, dir); err != nil {
			return err
		}
	}
	return nil
}

func manName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-")
}

// manPage writes one page in man(7) from the texts that --help shows.
func (f *Frame) manPage(cmd *cobra.Command) []byte {
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	fmt.Fprintf(&b, ".TH %s 1 \"\" %s\n", quote(strings.ToUpper(manName(cmd))), quote(f.root.Name()+" "+f.version))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", escape(manName(cmd)), escape(cmd.Short))
	section("SYNOPSIS")
	fmt.Fprintf(&b, ".B %s\n", escape(cmd.UseLine()))
	section("DESCRIPTION")
	paragraphs(&b, cmd.Long)
	if verbs := visible(cmd); len(verbs) > 0 {
		section("VERBS")
		for _, c := range verbs {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", escape(c.Name()), escape(c.Short))
		}
	}
	if flags := cmd.NonInheritedFlags(); flags.HasAvailableFlags() {
		section("OPTIONS")
		flags.VisitAll(func(f *pflag.Flag) { option(&b, f) })
	}
	if flags := cmd.InheritedFlags(); flags.HasAvailableFlags() {
		section("COMMON OPTIONS")
		flags.VisitAll(func(f *pflag.Flag) { option(&b, f) })
	}
	if cmd.Example != "" {
		section("EXAMPLES")
		verbatim(&b, cmd.Example)
	}
	section("EXIT STATUS")
	fmt.Fprintf(&b, ".TP\n.B 0\ndone\n")
	for _, k := range control.Kinds() {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s: %s\n", k.Exit, escape(string(k.Kind)), escape(k.Meaning))
	}
	if cmd.HasParent() {
		section("SEE ALSO")
		fmt.Fprintf(&b, ".BR %s (1)\n", escape(manName(cmd.Parent())))
	}
	return []byte(b.String())
}

// visible lists the verbs that help shows.
func visible(cmd *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, c := range cmd.Commands() {
		if !c.Hidden && !isCobras(c) {
			list = append(list, c)
		}
	}
	return list
}

func option(b *strings.Builder, f *pflag.Flag) {
	if f.Hidden {
		return
	}
	name, usage := pflag.UnquoteUsage(f)
	b.WriteString(".TP\n\\fB")
	if f.Shorthand != "" {
		fmt.Fprintf(b, "\\-%s\\fR, \\fB", f.Shorthand)
	}
	fmt.Fprintf(b, "\\-\\-%s\\fR", escape(f.Name))
	if name != "" {
		fmt.Fprintf(b, " \\fI%s\\fR", escape(name))
	}
	fmt.Fprintf(b, "\n%s\n", escape(usage))
}

// paragraphs writes prose; lines that are indented stay as they are.
func paragraphs(b *strings.Builder, text string) {
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(block, " ") {
			verbatim(b, block)
			continue
		}
		fmt.Fprintf(b, ".PP\n%s\n", escape(block))
	}
}

func verbatim(b *strings.Builder, text string) {
	fmt.Fprintf(b, ".PP\n.nf\n%s\n.fi\n", escape(strings.Trim(text, "\n")))
}

// escape keeps text from being taken for roff.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func quote(s string) string { return `"` + strings.ReplaceAll(escape(s), `"`, `\(dq`) + `"` }
