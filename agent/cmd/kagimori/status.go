package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func statusVerb() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show how this terminal is",
		Long:    "Shows how this terminal is: who it is, where its keys are, whether it is in\ntouch with the management server, what it holds, and what to do next.",
		Example: "  kagimori status\n  kagimori status --json | jq -r .link.state",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			var s agent.Status
			if err := c.Call(cmd.Context(), "com.kagimori.agent.Status", nil, &s); err != nil {
				return err
			}
			return verb.Print(cmd, s, func(w io.Writer) { showStatus(w, &s) })
		},
	}
}

func showStatus(w io.Writer, s *agent.Status) {
	fields := []any{"terminal", who(s), "device", "-"}
	if s.Device != nil {
		fields[3] = s.Device.String()
	}
	fields = append(fields, "keys", keys(s), "server", link(s))
	if s.Identity != nil {
		fields = append(fields, "identity", fmt.Sprintf("%s until %s", s.Identity.Text, verb.Time(s.Identity.Expires)))
	}
	fields = append(fields, "clock", clock(s), "credentials", credentials(s))
	for _, r := range s.Relays {
		fields = append(fields, "relay", relayLine(&r))
	}
	if s.Revoked != nil {
		fields = append(fields, "revoked gates", revokedLine(s.Revoked))
	}
	if s.Keycopy != nil {
		fields = append(fields, "key copy", keycopyLine(s.Keycopy))
	}
	verb.Fields(w, fields...)
	for _, next := range []string{s.Keys.Next, s.Link.Next, s.Credentials.Next} {
		if next != "" {
			fmt.Fprintf(w, "  next: %s\n", next)
		}
	}
}

func who(s *agent.Status) any {
	switch {
	case !s.Keys.Open:
		return verb.Warn("not known while the keys are not available")
	case s.Kind == "":
		return verb.Warn("not provisioned")
	case s.Kind == transport.BundleSpare:
		return fmt.Sprintf("none: a spare of deployment %s, group %s", s.Deployment, s.Group)
	}
	return fmt.Sprintf("%s of deployment %s, group %s", s.Terminal, s.Deployment, s.Group)
}

func keys(s *agent.Status) any {
	if !s.Keys.Open {
		return verb.Bad("not available: " + s.Keys.Text)
	}
	k := &s.Keys
	text := fmt.Sprintf("%s: %s", k.Level, k.Text)
	if k.Bond != "" {
		text += "; bound to: " + k.Bond
	}
	switch {
	case k.Reenroll:
		return verb.Bad(text + "; the keys inside the earlier one are gone: enroll anew")
	case k.Fallback != nil:
		return verb.Warn(text + "; " + wentOn(k.Fallback.Way) + " " + verb.Time(k.Fallback.At) + ": lost " + k.Fallback.Lost)
	case k.NotMeasured:
		return verb.Warn(text + "; the boot of this machine is not measured, so not bound to it")
	}
	return text
}

// wentOn says how the store went on after a loss.
func wentOn(way store.Way) string {
	switch way {
	case store.WayAccepted:
		return "a store file was accepted"
	case store.WayRecovered:
		return "the store was recovered"
	}
	return "fell back"
}

func link(s *agent.Status) any {
	l := &s.Link
	text := string(l.State)
	if l.Server != "" {
		text += " " + l.Server
	}
	switch l.State {
	case agent.LinkConnected:
		return verb.Good(text + " since " + verb.Time(l.Since))
	case agent.LinkSpare:
		return "none: a spare device needs none"
	case agent.LinkUnprovisioned:
		return verb.Warn("not known before a bundle is taken in")
	case agent.LinkStarting:
		if l.Error != "" {
			text = l.Error
		}
		return verb.Warn(text)
	}
	if l.Error != "" {
		text += ": " + l.Error
	}
	if l.Retry > 0 {
		text += fmt.Sprintf("; next attempt in %s", time.Duration(l.Retry)*time.Second)
	}
	return verb.Warn(text)
}

func clock(s *agent.Status) any {
	text := verb.Time(s.Clock.Now) + ", " + s.Clock.Text
	if !s.Clock.Trusted {
		return verb.Warn(text)
	}
	return text
}

func credentials(s *agent.Status) any {
	if !s.Keys.Open {
		return verb.Warn("not known while the keys are not available")
	}
	c := &s.Credentials
	text := fmt.Sprintf("%d, %d usable", c.Total, c.Usable)
	if c.Pending > 0 {
		text += fmt.Sprintf(", %d asked for", c.Pending)
	}
	if c.Unreported > 0 {
		text += fmt.Sprintf(", %d not yet reported to the server", c.Unreported)
	}
	var expired []string
	for _, e := range c.Expired {
		expired = append(expired, fmt.Sprintf("%s (%s) expired %s", e.ID, e.Service, verb.Time(e.Since)))
	}
	if len(expired) > 0 {
		text += "; " + strings.Join(expired, ", ")
	}
	if c.NextID != "" {
		text += fmt.Sprintf("; %s expires first, %s", c.NextID, verb.Time(c.NextExpiry))
	}
	if c.Usable < c.Total {
		return verb.Warn(text)
	}
	return text
}

func relayLine(r *agent.RelayStatus) any {
	text := fmt.Sprintf("%s at %s", r.Service, r.Listen)
	switch {
	case !r.Listening:
		return verb.Bad(text + ": not listening: " + r.Error)
	case r.Credential == "":
		return verb.Warn(text + ": " + r.Error)
	}
	text += fmt.Sprintf(", with %s, %d open", r.Credential, r.Active)
	if r.Error != "" {
		text += fmt.Sprintf("; last refusal %s: %s", verb.Time(r.ErrorTime), r.Error)
	}
	return text
}

func revokedLine(r *agent.RevokedStatus) any {
	text := "no list yet"
	if !r.Issued.IsZero() {
		text = fmt.Sprintf("%d on list %d of %s", r.Revoked, r.Number, verb.Time(r.Issued))
	}
	if r.Problem != "" {
		return verb.Warn(text + ": " + r.Problem)
	}
	return text
}

func keycopyLine(k *agent.KeycopyStatus) any {
	text := "no offer stands"
	switch {
	case k.Offer != "none":
		text = fmt.Sprintf("an offer stands at %s, its code is good for %s", k.Listen, time.Duration(k.Seconds)*time.Second)
	case k.Locked > 0:
		return verb.Bad(fmt.Sprintf("locked for %s after wrong operator codes", time.Duration(k.Locked)*time.Second))
	case k.LockedFetch > 0:
		return verb.Bad(fmt.Sprintf("this terminal takes no operator code for %s, after wrong ones", time.Duration(k.LockedFetch)*time.Second))
	}
	if len(k.Open) > 0 {
		for _, o := range k.Open {
			text += fmt.Sprintf("; %s: %s", o.Short, o.Text)
		}
		return verb.Warn(text + "; see: kagimori keycopy list")
	}
	if k.Last != "" {
		text += fmt.Sprintf("; %s: %s", verb.Time(k.LastAt), k.Last)
	}
	return text
}
