package keycopy

// An invitation is what the QR code of an offer says: where the old terminal
// waits, and which key it will show in TLS. It holds nothing secret, and above
// all no operator code.

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

const (
	// InvitationScheme begins every invitation.
	InvitationScheme = "kagimori-keycopy:"
	// MaxInvited is how many addresses an invitation has.
	MaxInvited = 4
	// maxInvitation bounds its text, in bytes.
	maxInvitation = 512
)

// ErrInvitation is a text that is none.
var ErrInvitation = errors.New("not an invitation to a key copy; it looks like kagimori-keycopy:?a=192.0.2.7:8885&k=…")

// An Invitation tells a Target where a Source is, and by which key it is known.
type Invitation struct {
	Addresses []netip.AddrPort // at least one
	// Key is SHA-256 of the key, a DER SubjectPublicKeyInfo, in the certificate
	// that the Source shows.
	Key [sha256.Size]byte
}

// IsInvitation says whether text is meant as one.
func IsInvitation(text string) bool {
	return len(text) >= len(InvitationScheme) && strings.EqualFold(text[:len(InvitationScheme)], InvitationScheme)
}

// String is the text: kagimori-keycopy:?a=ADDRESS:PORT&k=KEY, an a for each
// address, k in base64url without padding.
func (i *Invitation) String() string {
	var b strings.Builder
	b.WriteString(InvitationScheme + "?")
	for _, a := range i.Addresses {
		b.WriteString("a=" + a.String() + "&")
	}
	return b.String() + "k=" + base64.RawURLEncoding.EncodeToString(i.Key[:])
}

// ParseInvitation reads one, strictly: it is what String would write, but for
// the order of its parts and the case of the scheme.
func ParseInvitation(text string) (*Invitation, error) {
	if !IsInvitation(text) || len(text) > maxInvitation {
		return nil, ErrInvitation
	}
	query, ok := strings.CutPrefix(text[len(InvitationScheme):], "?")
	if !ok {
		return nil, ErrInvitation
	}
	var i Invitation
	keyed := false
	for _, part := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "a":
			a, err := netip.ParseAddrPort(value)
			if err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().IsUnspecified() || a.String() != value {
				return nil, fmt.Errorf("%w: an address is wrong", ErrInvitation)
			}
			if len(i.Addresses) == MaxInvited {
				return nil, fmt.Errorf("%w: more than %d addresses", ErrInvitation, MaxInvited)
			}
			i.Addresses = append(i.Addresses, a)
		case "k":
			key, err := base64.RawURLEncoding.Strict().DecodeString(value)
			if err != nil || keyed || len(key) != len(i.Key) || base64.RawURLEncoding.EncodeToString(key) != value {
				return nil, fmt.Errorf("%w: the key is wrong", ErrInvitation)
			}
			i.Key, keyed = [sha256.Size]byte(key), true
		default:
			return nil, fmt.Errorf("%w: it has a part that this version does not know; update this terminal", ErrInvitation)
		}
	}
	if !keyed || len(i.Addresses) == 0 {
		return nil, fmt.Errorf("%w: a part is missing", ErrInvitation)
	}
	return &i, nil
}
