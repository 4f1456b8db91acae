package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func relayVerbs() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the relays",
		Long:    "Lists the relays: local ports and sockets through which programs on this\nterminal reach a service with its credential. They are set as [[relay]] in the\nconfiguration.",
		Example: "  kagimori relay list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var page agent.RelayPage
			if err := c.Call(cmd.Context(), "com.kagimori.agent.RelayList", nil, &page); err != nil {
				return err
			}
			return verb.Print(cmd, page, func(w io.Writer) { showRelays(w, page.Relays) })
		},
	}
	return verb.Group("relay", "Relays: local ports to services", "Local ports and sockets through which unchanged programs use credentials.", list)
}

func showRelays(w io.Writer, relays []agent.RelayStatus) {
	t := verb.NewTable(w, "SERVICE", "LISTEN", "CREDENTIAL", "OPEN", "RELAYED", "REFUSED", "STATE")
	for _, r := range relays {
		state := verb.Good("ready")
		switch {
		case !r.Listening:
			state = verb.Bad("not listening: " + r.Error)
		case r.Credential == "":
			state = verb.Warn(r.Error)
		case r.Error != "":
			state = verb.Warn(fmt.Sprintf("last refusal %s: %s", verb.Time(r.ErrorTime), r.Error))
		}
		t.Row(r.Service, r.Listen, cmp.Or(string(r.Credential), "-"), r.Active, r.Relayed, r.Refused, state)
	}
	t.Flush("no relays; add a [[relay]] to the configuration and restart the daemon")
}
