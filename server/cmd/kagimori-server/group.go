package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func groupVerbs() *cobra.Command {
	return verb.Group("group", "Groups: terminals that share a security code",
		`The terminals of a group can take over from each other, because they share a
security code. Its codes are counted in epochs. To replace one: rotate makes a
new code and gives it to every terminal of the group as it connects; show says
how far that is; retire ends the old one. Until then both are accepted.`,
		groupAdd(), groupList(), groupShow(), groupRotate(), groupResume(), groupRetire())
}

func groupAdd() *cobra.Command {
	return &cobra.Command{
		Use: "add NAME", Short: "Make a group with a security code of its own",
		Long:    "Makes a group. Terminals and spares of one group cannot take over from those of\nanother. A terminal's group is chosen when it is added, and stays.",
		Example: "  kagimori-server group add ferries\n  kagimori-server terminal add ferry-001 --group ferries",
		RunE: func(cmd *cobra.Command, args []string) error {
			var out server.GroupChange
			if err := ask(cmd, "GroupAdd", server.NameParams{Name: args[0]}, &out); err != nil {
				return err
			}
			return verb.Print(cmd, out, func(w io.Writer) {
				fmt.Fprintf(w, "group %s is made; next: kagimori-server terminal add NAME --group %[1]s\n", out.Group)
			})
		},
	}
}

func groupList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List groups",
		Long:    "Lists groups, with the epochs of the security codes that are in force, newest\nfirst, and how many enrolled terminals do not have the newest yet.",
		Example: "  kagimori-server group list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var page server.GroupPage
			if err := ask(cmd, "GroupList", nil, &page); err != nil {
				return err
			}
			return verb.Print(cmd, page, func(w io.Writer) {
				t := verb.NewTable(w, "GROUP", "EPOCHS", "TERMINALS", "LACK THE NEWEST")
				for _, g := range page.Groups {
					t.Row(g.Group, epochs(g.Active), g.Terminals, lacking(g.Lacking))
				}
				t.Flush("no groups")
			})
		},
	}
}

// epochs writes a list of them.
func epochs(list []uint32) string {
	var b strings.Builder
	for i, e := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, e)
	}
	return b.String()
}

func lacking(n int) verb.Cell {
	if n == 0 {
		return verb.Good("0")
	}
	return verb.Warn(fmt.Sprint(n))
}

func groupShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a group's security codes and how far each is rolled out",
		Long: `Shows each epoch of a group's security code: how many enrolled terminals hold
it, are ordered to take it, have refused it, or are to forget it; and how many
spare bundles were made with it. Nobody knows which of those are still on a
shelf: boxes provisioned with a retired code need a new bundle. Then it names
the first terminals that do not have the newest code.`,
		Example: "  kagimori-server group show default",
		RunE: func(cmd *cobra.Command, args []string) error {
			var d server.GroupDetail
			if err := ask(cmd, "GroupShow", server.NameParams{Name: args[0]}, &d); err != nil {
				return err
			}
			return verb.Print(cmd, d, func(w io.Writer) { showGroup(w, &d) })
		},
	}
}

func showGroup(w io.Writer, d *server.GroupDetail) {
	verb.Fields(w, "group", d.Group.Group, "terminals", d.Group.Terminals, "newest code", fmt.Sprintf("epoch %d", d.Group.Epoch), "lack it", lacking(d.Group.Lacking))
	fmt.Fprintln(w)
	t := verb.NewTable(w, "EPOCH", "STATE", "SINCE", "HELD", "ORDERED", "REFUSED", "RETIRING", "SPARE BUNDLES")
	for _, c := range d.Codes {
		state := verb.Good(string(c.State))
		if c.State == store.CodeRetired {
			state = verb.Dim(string(c.State))
		}
		t.Row(c.Epoch, state, verb.Time(c.Changed), c.Held, c.Ordered, c.Refused, c.Retiring, c.Spares)
	}
	t.Flush("no codes")
	if len(d.Laggards) == 0 {
		return
	}
	fmt.Fprintf(w, "\nWithout the code of epoch %d:\n", d.Group.Epoch)
	t = verb.NewTable(w, "TERMINAL", "CODE", "LAST SEEN")
	for _, l := range d.Laggards {
		seen := any(verb.Time(l.Seen))
		if l.Connected {
			seen = verb.Good("connected")
		}
		t.Row(l.Terminal, l.State, seen)
	}
	t.Flush("")
	if n := d.Group.Lacking - len(d.Laggards); n > 0 {
		fmt.Fprintf(w, "and %d more\n", n)
	}
}

func groupRotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate NAME", Short: "Make a new security code and give it to the group's terminals",
		Long: `Makes a new security code. Every enrolled terminal of the group is ordered to
take it, as soon as it connects; new bundles carry it. The codes so far stay in
force until they are retired.

A terminal that has proven its TPM gets the code wrapped to that chip.`,
		Example: "  kagimori-server group rotate default\n  kagimori-server group show default",
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeGroup(cmd, "GroupRotate", server.NameParams{Name: args[0]}, func(w io.Writer, c *server.GroupChange) {
				fmt.Fprintf(w, "epoch %d of group %s is in force; %d terminals are told to take it, %d of them are connected\n", c.Epoch, c.Group, c.Ordered, c.Connected)
				fmt.Fprintf(w, "  next: watch it with: kagimori-server group show %s\n", c.Group)
			})
		},
	}
}

func groupResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME", Short: "Tell terminals again to take the security codes in force",
		Long:    "Orders the codes in force anew from terminals that refused them, for example\nbecause their software was too old, or that were never told,\nand has retired ones forgotten that a terminal did not give up.",
		Example: "  kagimori-server group resume default",
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeGroup(cmd, "GroupResume", server.NameParams{Name: args[0]}, func(w io.Writer, c *server.GroupChange) {
				fmt.Fprintf(w, "%d terminals of group %s are told again\n", c.Ordered, c.Group)
			})
		},
	}
}

func groupRetire() *cobra.Command {
	var epoch uint32
	var force bool
	cmd := &cobra.Command{
		Use: "retire NAME", Short: "End a security code of a group",
		Long: `Destroys the code of an epoch here and orders every terminal of the group to
forget it, so that it is accepted nowhere any more. Spare boxes that were
provisioned with it need a new bundle.

It is refused for the only code in force, and while terminals have no other yet,
unless with --force: then keys cannot be copied to or from those until they have
connected and got the newer code.`,
		Example: "  kagimori-server group retire default --epoch 1",
	}
	cmd.Flags().Uint32Var(&epoch, "epoch", 0, "which code, as group show lists them")
	cmd.Flags().BoolVar(&force, "force", false, "also if terminals have no other code yet")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if epoch == 0 {
			return control.Problemf(control.Usage, "see: kagimori-server group show "+args[0], "--epoch is missing")
		}
		return changeGroup(cmd, "GroupRetire", server.GroupRetireParams{Name: args[0], Epoch: epoch, Force: force}, func(w io.Writer, c *server.GroupChange) {
			fmt.Fprintf(w, "epoch %d of group %s is retired; %d terminals are told to forget it, %d of them are connected\n", c.Epoch, c.Group, c.Ordered, c.Connected)
			if c.Lacking > 0 {
				fmt.Fprintf(w, "  %d terminals have no other code before they connect\n", c.Lacking)
			}
			if c.Spares > 0 {
				fmt.Fprintf(w, "  next: boxes on the shelf from the %d spare bundles made with it need a new one: kagimori-server spare add --group %s\n", c.Spares, c.Group)
			}
		})
	}
	return cmd
}

func changeGroup(cmd *cobra.Command, method string, in any, human func(io.Writer, *server.GroupChange)) error {
	var out server.GroupChange
	if err := ask(cmd, method, in, &out); err != nil {
		return err
	}
	return verb.Print(cmd, out, func(w io.Writer) { human(w, &out) })
}
