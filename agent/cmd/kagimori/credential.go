package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func credentialVerbs() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the credentials of this terminal",
		Long:    "Lists the credentials that this device holds. Nothing secret is shown.",
		Example: "  kagimori credential list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			all := []agent.CredentialInfo{}
			err = c.Stream(cmd.Context(), "com.kagimori.agent.CredentialList", nil, func(raw json.RawMessage) error {
				var page agent.CredentialPage
				err := json.Unmarshal(raw, &page)
				all = append(all, page.Credentials...)
				return err
			})
			if err != nil {
				return err
			}
			return verb.Print(cmd, agent.CredentialPage{Credentials: all}, func(w io.Writer) { showCredentials(w, all) })
		},
	}
	show := &cobra.Command{
		ValidArgsFunction: oneCredential,
		Use:               "show ID",
		Short:             "Show one credential and its certificate",
		Long:              "Shows one credential, with what its certificate says and the certificate\nitself. The private key is never shown.",
		Example:           "  kagimori credential show cr-7q3mz5xk2a",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var d agent.CredentialDetail
			if err := c.Call(cmd.Context(), "com.kagimori.agent.CredentialShow", agent.CredentialParams{ID: args[0]}, &d); err != nil {
				return err
			}
			return verb.Print(cmd, d, func(w io.Writer) { showCredential(w, &d) })
		},
	}
	return verb.Group("credential", "Credentials of this terminal", "What this device holds to authenticate with.", list, show, credentialImport(), credentialRemove())
}

func showCredentials(w io.Writer, list []agent.CredentialInfo) {
	t := verb.NewTable(w, "ID", "KIND", "SERVICE", "SUBJECT", "STATE", "EXPIRES", "ORIGIN", "REPORTED")
	for _, c := range list {
		t.Row(c.ID, kind(&c), c.Service, c.Subject, state(&c), verb.Time(c.Expires), origin(&c), reported(&c))
	}
	t.Flush("no credentials; have one issued to this terminal (kagimori-server credential issue),\nor copy them from the terminal that it replaces (kagimori keycopy fetch)")
}

// kind is a credential's kind, and whether its key is in the chip.
func kind(c *agent.CredentialInfo) string {
	if c.InChip {
		return string(c.Kind) + ", in chip"
	}
	return string(c.Kind)
}

func state(c *agent.CredentialInfo) verb.Cell {
	if c.Usable {
		return verb.Good("in force")
	}
	if c.Away != nil || c.Staged != nil {
		return verb.Warn(c.Why)
	}
	return verb.Bad(c.Why)
}

func origin(c *agent.CredentialInfo) string {
	switch {
	case c.SourceName != "":
		return fmt.Sprintf("%s from %s", c.Origin, c.SourceName)
	case c.Source != nil:
		return fmt.Sprintf("%s from device %s", c.Origin, c.Source.Short())
	}
	return string(c.Origin)
}

func reported(c *agent.CredentialInfo) verb.Cell {
	switch {
	case c.Kind != transport.KindCertificate: // the server has no use for it
		return verb.Good("-")
	case c.Reported:
		return verb.Good("yes")
	case c.Refusal != "":
		return verb.Bad("refused: " + c.Refusal)
	}
	return verb.Warn("not yet")
}

func showCredential(w io.Writer, d *agent.CredentialDetail) {
	c := &d.CredentialInfo
	expires := "never"
	if !d.Expires.IsZero() {
		expires = verb.Time(d.Expires) + ", in " + days(d.Remaining)
	}
	fields := []any{"id", d.ID, "kind", d.Kind, "secret", d.Secret, "service", d.Service, "subject", d.Subject, "usage", d.Usage, "state", state(c)}
	if d.Certificate != "" {
		fields = append(fields, "valid from", verb.Time(d.NotBefore))
	}
	fields = append(fields, "expires", expires, "transfer", d.Transfer, "chip only", d.ChipOnly, "in chip", d.InChip,
		"origin", origin(c), "here since", verb.Time(d.Since), "reported", reported(c))
	if d.PublicKey != "" {
		fields = append(fields, "public key", "SHA-256 "+d.PublicKey)
	}
	if d.Certificate != "" {
		fields = append(fields, "reached at", strings.Join(d.Endpoints, ", "), "service name", d.ServerName, "trusted roots", strings.Join(d.Anchors, "; "),
			"serial", d.Serial, "issued by", d.Issuer, "names", strings.Join(d.Names, ", "), "key", d.Algorithm)
	}
	verb.Fields(w, fields...)
	fmt.Fprint(w, d.Certificate)
}

func days(seconds int64) string {
	left := time.Duration(seconds) * time.Second
	if left >= 48*time.Hour {
		return fmt.Sprintf("%d days", left/(24*time.Hour))
	}
	return left.Round(time.Minute).String()
}
