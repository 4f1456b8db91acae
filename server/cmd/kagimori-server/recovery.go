package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func recoveryVerbs() *cobra.Command {
	return verb.Group("recovery", "Recovery: terminals that ask for the key of their earlier store",
		"A terminal keeps the key of its store also wrapped for this server. When its chip\nwas cleared or exchanged, or a boot was measured that nobody approved, it is\nenrolled anew (terminal reenroll) and asks for that key. An administrator decides;\nuntil then, and after a denial, it works with new credentials.",
		recoveryList(), recoveryShow(), recoveryApprove(), recoveryDeny())
}

func recoveryList() *cobra.Command {
	var q listFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List requests for the key of an earlier store",
		Long:    "Lists the requests of terminals, finished ones too.\nColumns: id, terminal, state, asked, decided. A state is asked, approved, denied,\nreleased (sent, not yet confirmed) or taken.",
		Example: "  kagimori-server recovery list --where state=asked",
	}
	q.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list := []server.RecoveryInfo{}
		err := q.pages(cmd, func(in server.ListParams) (string, error) {
			var page server.RecoveryPage
			err := ask(cmd, "RecoveryList", in, &page)
			list = append(list, page.Recoveries...)
			return page.Next, err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"recoveries": list}, func(w io.Writer) {
			t := verb.NewTable(w, "ID", "TERMINAL", "DEVICE", "STORE OF DEVICE", "STATE", "ASKED", "BY")
			for _, x := range list {
				t.Row(x.ID, x.Terminal, x.Device.Short(), x.Origin.Short(), recoveryState(x.State), verb.Time(x.Asked), x.Actor)
			}
			t.Flush(q.empty("no terminal has asked for the key of an earlier store"))
		})
	}
	return cmd
}

func recoveryState(s transport.RecoveryProgress) verb.Cell {
	switch s {
	case transport.RecoveryAsked:
		return verb.Warn("asked: decide")
	case transport.RecoveryDenied:
		return verb.Bad(string(s))
	}
	return verb.Good(string(s))
}

func recoveryShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show a request, and what is at stake",
		Long:    "Shows a request: which device asks, whose store it is, and the credentials that\nthe earlier device still holds as far as the server knows.",
		Example: "  kagimori-server recovery show 00112233445566778899aabbccddeeff",
		RunE: func(cmd *cobra.Command, args []string) error {
			var d server.RecoveryDetail
			if err := ask(cmd, "RecoveryShow", server.RecoveryParams{ID: args[0]}, &d); err != nil {
				return err
			}
			return verb.Print(cmd, d, func(w io.Writer) {
				x := d.Recovery
				verb.Fields(w, "id", x.ID, "terminal", x.Terminal, "device that asks", x.Device, "is the terminal", x.Current, "connected", x.Connected,
					"key storage", dash(x.Level), "store of device", x.Origin, "store", d.Store, "recovery key", fmt.Sprintf("version %d", d.Version),
					"state", recoveryState(x.State), "asked", verb.Time(x.Asked), "from address", dash(x.Address), "decided", verb.Time(x.Decided), "last by", x.Actor,
					"earlier device held", dash(names(d.Holds)))
				next(w, x.Next)
			})
		},
	}
}

func next(w io.Writer, what string) {
	if what != "" {
		fmt.Fprintf(w, "next: %s\n", what)
	}
}

func recoveryApprove() *cobra.Command {
	return &cobra.Command{
		Use:   "approve ID",
		Short: "Release the key of an earlier store to the terminal that asks",
		Long: `Has the key of an earlier store released to the device that asks for it, which
then has all that its predecessor held. Approve it only if you know that this box
is the one that was set up anew: call whoever stands before it. It is released
while the device is enrolled as that terminal, to the key of that request alone.`,
		Example: "  kagimori-server recovery approve 00112233445566778899aabbccddeeff",
		RunE: func(cmd *cobra.Command, args []string) error {
			return decide(cmd, "RecoveryApprove", args[0], func(w io.Writer, x server.RecoveryInfo) {
				if x.State != transport.RecoveryApproved {
					fmt.Fprintf(w, "nothing to do: %s was approved before and is %s: its key has been sent to %s.\n", x.ID, x.State, x.Terminal)
					return
				}
				when := "as soon as it connects"
				if x.Connected {
					when = "now"
				}
				fmt.Fprintf(w, "%s is approved: %s gets the key of its earlier store %s.\n", x.ID, x.Terminal, when)
			})
		},
	}
}

func recoveryDeny() *cobra.Command {
	return &cobra.Command{
		Use:     "deny ID",
		Short:   "Refuse a request",
		Long:    "Refuses a request, or takes an approval back that was not made use of yet. The\nterminal goes on with new credentials. A denied request may be approved later.",
		Example: "  kagimori-server recovery deny 00112233445566778899aabbccddeeff",
		RunE: func(cmd *cobra.Command, args []string) error {
			return decide(cmd, "RecoveryDeny", args[0], func(w io.Writer, x server.RecoveryInfo) {
				if x.State != transport.RecoveryDenied {
					fmt.Fprintf(w, "nothing to do: %s is %s.\n", x.ID, x.State)
					return
				}
				fmt.Fprintf(w, "%s is denied: %s goes on without its earlier store.\n", x.ID, x.Terminal)
			})
		},
	}
}

func decide(cmd *cobra.Command, method, id string, human func(io.Writer, server.RecoveryInfo)) error {
	var x server.RecoveryInfo
	if err := ask(cmd, method, server.RecoveryParams{ID: id}, &x); err != nil {
		return err
	}
	return verb.Print(cmd, x, func(w io.Writer) { human(w, x) })
}
