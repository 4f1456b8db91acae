package main

import (
	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func gateVerbs() *cobra.Command {
	return verb.Group("gate", "Gates: what stands in front of a service",
		"A gate admits terminals to one service. It enrolls like a terminal, under the\nname gate-SERVICE, and is listed, shown, reenrolled and removed as one.",
		gateAdd())
}

func gateAdd() *cobra.Command {
	var dns, endpoints []string
	var group, out string
	cmd := &cobra.Command{
		Use:   "add SERVICE",
		Short: "Add a service and expect its gate, whose bundle it makes",
		Long: `Adds a service, expects the terminal gate-SERVICE that guards it, writes its
bundle, and orders the certificate that it will show to terminals. That
certificate carries the names given with --dns and no other; the first is the
one that terminals ask for. A name belongs to one service, and the management
server's belong to none.`,
		Example: "  kagimori-server gate add maps --dns maps.example.com\n  kagimori-server gate add maps --dns maps.example.com --endpoint 192.0.2.7:8443 --out gate.bundle",
	}
	cmd.Flags().StringArrayVar(&dns, "dns", nil, "DNS `NAME` or address of the gate; may be given several times")
	cmd.Flags().StringArrayVar(&endpoints, "endpoint", nil, "`HOST:PORT` where terminals find it, in the order to try (default the first --dns, port 8443)")
	cmd.Flags().StringVar(&group, "group", "", "`GROUP` whose security code it gets (default "+string(server.DefaultGroup)+")")
	outFlag(cmd, &out, "gate-SERVICE.bundle")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(dns) == 0 {
			return control.Problemf(control.Usage, "name it: kagimori-server gate add "+args[0]+" --dns NAME", "--dns is missing: under which name do terminals reach the gate?")
		}
		return makeBundle(cmd, "GateAdd", orDefault(out, "gate-"+args[0]+".bundle"), func(key string) any {
			return server.GateAddParams{Service: args[0], DNS: dns, Endpoints: endpoints, Group: group, ReplyKey: key}
		})
	}
	return cmd
}

func spareVerbs() *cobra.Command {
	return verb.Group("spare", "Spares: boxes that will replace a terminal",
		"A spare box knows the deployment and the security code of its group, and no\nserver: it may take over the credentials of a terminal by key copy.",
		spareAdd())
}

func spareAdd() *cobra.Command {
	var group, out string
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Make a bundle for a replacement box",
		Long: `Writes a bundle for boxes that will replace terminals of a group. A box with it
can copy the credentials of the terminal that it replaces, with no server in
reach. A bundle of its own (terminal add) makes it a terminal later.`,
		Example: "  kagimori-server spare add --group default --out spare.bundle",
	}
	cmd.Flags().StringVar(&group, "group", "", "`GROUP` of the terminals that it may replace (default "+string(server.DefaultGroup)+")")
	outFlag(cmd, &out, "spare-GROUP.bundle")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path := orDefault(out, "spare-"+orDefault(group, string(server.DefaultGroup))+".bundle")
		return makeBundle(cmd, "SpareAdd", path, func(key string) any { return server.SpareAddParams{Group: group, ReplyKey: key} })
	}
	return cmd
}
