// Package verb is the frame of the command line, the same for the three
// programs: what a verb prints, how it fails, how it asks for a secret, and
// how its help, man page and completion come about. START HERE:
//
//   - verb.go: New, Add, Execute; a main is os.Exit(frame.Execute(ctx))
//   - args.go: arguments as the Use line says them; groups of verbs
//   - problem.go: errors and exit codes
//   - print.go, table.go, progress.go: output for people, or with --json for programs
//   - secret.go: secrets from a terminal without echo, or from standard input
//   - man.go, version.go, lint.go: man pages, the version verb, the test of every verb's help
//
// A verb is a *cobra.Command with Use ("fetch ADDRESS"), Short, Long, Example
// and RunE. It never prints an error and never exits: it returns one.
package verb

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

const (
	jsonFlag    = "json"
	socketFlag  = "socket"
	versionFlag = "version"
)

// A Frame is one program's command line.
type Frame struct {
	root    *cobra.Command
	version string
}

// New makes a program with the verbs that all have: version, completion, help
// and the topic exit-codes. The socket of its daemon is /run/<name>/control.sock,
// unless --socket or the environment (KAGIMORI_GATE_SOCKET and so on) says
// otherwise. The version is Version, "devel" when it is empty.
func New(name, short, long, version string) *Frame {
	if version == "" {
		version = "devel"
	}
	root := &cobra.Command{
		Use: name, Short: short, Long: long,
		SilenceErrors: true, SilenceUsage: true,
		DisableFlagsInUseLine: true, DisableSuggestions: true,
	}
	socket := os.Getenv(socketVariable(name))
	if socket == "" {
		socket = "/run/" + name + "/control.sock"
	}
	flags := root.PersistentFlags()
	flags.Bool(jsonFlag, false, "print JSON, errors too")
	flags.String(socketFlag, socket, "`PATH` of the daemon's control socket; also $"+socketVariable(name))
	root.Flags().Bool(versionFlag, false, "show the version, as the verb does")
	root.SetUsageFunc(usage(root.UsageFunc()))
	f := &Frame{root: root, version: version}
	root.AddCommand(f.versionVerb(), f.manVerb(), exitCodes())
	return f
}

// usage edits what cobra's own usage says. A template would do it, too, and link
// text/template, whose look-ups by name make the linker keep every method of
// every type: 1.4 MiB on a terminal.
func usage(own func(*cobra.Command) error) func(*cobra.Command) error {
	return func(c *cobra.Command) error {
		out := c.OutOrStderr()
		defer c.SetOut(out)
		var text strings.Builder
		c.SetOut(&text)
		if err := own(c); err != nil {
			return err
		}
		s := text.String()
		if c.HasAvailableSubCommands() { // a group runs only to say what it holds
			s = strings.Replace(s, "\n  "+c.UseLine()+"\n", "\n", 1)
		}
		_, err := io.WriteString(out, strings.ReplaceAll(s, "[command]", "VERB"))
		return err
	}
}

// socketVariable is the environment variable that stands for --socket.
func socketVariable(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_SOCKET"
}

// Add adds verbs, or groups of verbs made by Group.
func (f *Frame) Add(verbs ...*cobra.Command) { f.root.AddCommand(verbs...) }

// Execute runs the process's command line until it is done or a SIGINT or
// SIGTERM ends its context, and returns the exit code. A second signal kills.
func (f *Frame) Execute(ctx context.Context) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return f.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// Run is Execute for given arguments and streams.
func (f *Frame) Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	started := false
	prepare(f.root, &started)
	f.root.SetArgs(args)
	f.root.SetIn(in)
	f.root.SetOut(out)
	f.root.SetErr(errOut)
	cmd, err := f.root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code, ok := err.(exit); ok {
		return int(code)
	}
	p := control.AsProblem(err)
	if !started && p.Kind == control.Internal { // cobra's own: flags, arguments
		p = control.Problemf(control.Usage, "see `"+cmd.CommandPath()+" --help`", "%w", err)
	}
	// The flag may stand behind the one that did not parse.
	asJSON := JSON(cmd) || slices.Contains(args, "--"+jsonFlag)
	printProblem(errOut, f.root.Name(), p, asJSON)
	return p.Kind.Exit()
}

// JSON says whether --json was given.
func JSON(cmd *cobra.Command) bool {
	v, _ := cmd.Root().PersistentFlags().GetBool(jsonFlag)
	return v
}

// Socket is the control socket of the daemon.
func Socket(cmd *cobra.Command) string {
	v, _ := cmd.Root().PersistentFlags().GetString(socketFlag)
	return v
}

// Dial connects to the daemon.
func Dial(cmd *cobra.Command) (*control.Client, error) {
	c, err := control.Dial(cmd.Context(), Socket(cmd))
	if p, ok := errors.AsType[*control.Problem](err); ok && p.Kind == control.Unavailable { // only here the program's name is known
		p.Next = "start it: systemctl start " + cmd.Root().Name() + "; if it runs with another socket, name that with --socket"
	}
	return c, err
}
