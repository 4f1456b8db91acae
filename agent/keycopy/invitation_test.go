package keycopy

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestInvitation(t *testing.T) {
	i := &Invitation{Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:8885"), netip.MustParseAddrPort("[2001:db8::7]:8885")}, Key: sha256.Sum256([]byte("key"))}
	const want = "kagimori-keycopy:?a=192.0.2.7:8885&a=[2001:db8::7]:8885&k=LHDhK3oGRvkiefQnx7OOczTY5TizTWksw6Rl-AV_9gw"
	text := i.String()
	if !strings.HasPrefix(text, "kagimori-keycopy:?a=192.0.2.7:8885&a=[2001:db8::7]:8885&k=") || len(text) != len(want) {
		t.Fatalf("%s", text)
	}
	for _, s := range []string{text, strings.ToUpper(InvitationScheme) + text[len(InvitationScheme):]} {
		if got, err := ParseInvitation(s); err != nil || !slices.Equal(got.Addresses, i.Addresses) || got.Key != i.Key {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	k := text[strings.Index(text, "k="):]
	for _, s := range []string{"", InvitationScheme, InvitationScheme + "?", "192.0.2.7:8885", InvitationScheme + "?" + k, InvitationScheme + "?a=192.0.2.7:8885", text + "&" + k,
		text + "x", text + "=", text + "&a=192.0.2.8:1&a=192.0.2.9:1&a=192.0.2.10:1", text + "&c=123456789", text + "&", InvitationScheme + "?a=old.example:8885&" + k,
		InvitationScheme + "?a=192.0.2.7:0&" + k, InvitationScheme + "?a=0.0.0.0:8885&" + k, InvitationScheme + "?a=[fe80::1%eth0]:1&" + k, InvitationScheme + "?a=[2001:DB8::7]:1&" + k,
		InvitationScheme + "//?a=192.0.2.7:1&" + k, text + strings.Repeat("&a=1", 500)} {
		if got, err := ParseInvitation(s); !errors.Is(err, ErrInvitation) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}

func FuzzInvitation(f *testing.F) {
	f.Add("kagimori-keycopy:?a=192.0.2.7:8885&k=LHDhK3oGRvkiefQnx7OOczTY5TizTWksw6Rl-AV_9gw")
	f.Add("kagimori-keycopy:?a=[::1]:1&a=&k=")
	f.Fuzz(func(t *testing.T, text string) {
		i, err := ParseInvitation(text)
		if err != nil {
			return
		}
		again, err := ParseInvitation(i.String())
		if err != nil || len(i.String()) != len(text) || again.Key != i.Key || !slices.Equal(again.Addresses, i.Addresses) {
			t.Errorf("%q is written %q: %v", text, i, err)
		}
	})
}
