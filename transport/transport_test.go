package transport

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"crypto/rand"
)

func TestUnmarshalRefusesEveryOtherEncoding(t *testing.T) {
	good, err := Marshal(CommandAck{Command: ID{1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmarshal(good, new(CommandAck), MaxEnvelope); err != nil {
		t.Fatalf("own encoding refused: %v", err)
	}
	id := strings.Repeat("\x00", 15)
	for name, data := range map[string]string{
		"trailing byte":    string(good) + "\x00",
		"short array":      "\xa1\x01\x4f\x01" + id[:14],
		"long key":         "\xa1\x18\x01\x50\x01" + id,
		"text key":         "\xa1\x611\x50\x01" + id,
		"unknown field":    "\xa2\x01\x50\x01" + id + "\x02\x00",
		"twice":            "\xa2\x01\x50\x01" + id + "\x01\x50\x01" + id,
		"missing field":    "\xa0",
		"indefinite map":   "\xbf\x01\x50\x01" + id + "\xff",
		"indefinite bytes": "\xa1\x01\x5f\x50\x01" + id + "\xff",
		"tag":              "\xc0\xa1\x01\x50\x01" + id,
		"null":             "\xf6",
		"empty":            "",
	} {
		if err := Unmarshal([]byte(data), new(CommandAck), MaxEnvelope); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if err := Unmarshal(good, new(CommandAck), len(good)-1); !errors.Is(err, ErrMalformed) {
		t.Errorf("over the limit: %v", err)
	}
}

func TestEnvelopeRoundTrip(t *testing.T) {
	ask, err := Pack(rand.Reader, time.Unix(1e9, 0), nil, &CommandPoll{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := Unpack(ask, MaxEnvelope)
	if err != nil || e.Type != "command.poll" || e.Time != 1e9 || e.InReplyTo != nil {
		t.Fatalf("%+v, %v", e, err)
	}
	answer, err := Pack(rand.Reader, time.Time{}, e, &CommandNext{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Unpack(answer, MaxEnvelope)
	if err != nil || r.InReplyTo == nil || *r.InReplyTo != e.ID || r.Time != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if next, err := Open[CommandNext](r); err != nil || next.Command != nil {
		t.Fatalf("%+v, %v", next, err)
	}
	if _, err := Open[CommandAck](r); !errors.Is(err, ErrMalformed) {
		t.Fatalf("another type: %v", err)
	}
}

func TestSensitiveDoesNotPrint(t *testing.T) {
	b := Bundle{SecurityCode: Sensitive("needle"), CommonKey: Sensitive("needle")}
	js, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprint(b), fmt.Sprintf("%v %+v %#v", b, b, b), fmt.Sprintf("%s %x %q", b.CommonKey, b.CommonKey, b.CommonKey), string(js)} {
		if strings.Contains(out, "needle") || strings.Contains(out, "6e6565646c65") || strings.Contains(out, "bmVlZGxl") {
			t.Errorf("printed: %s", out)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []string{"a", "nav-001", "0", strings.Repeat("x", MaxName)} {
		if _, err := ParseName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "-a", "A", "a_b", "a.b", "a/b", "ä", "a b", "enroll-a", strings.Repeat("x", MaxName+1)} {
		if _, err := ParseName(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestURIs(t *testing.T) {
	for s, want := range map[string]URI{
		"kagimori://demo/terminal/nav-001":              {Deployment: "demo", Terminal: "nav-001"},
		"kagimori://demo/service/maps/credential/cr-1a": {Deployment: "demo", Service: "maps", Credential: "cr-1a"},
		"kagimori://demo/server":                        {Deployment: "demo", Server: true},
	} {
		got, err := ParseURI(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "kagimori://", "kagimori://demo", "kagimori://demo/terminal/", "kagimori://demo/terminal/a/b", "kagimori://demo/terminal/A",
		"https://demo/terminal/a", "kagimori://demo/terminal/a?x", "kagimori://demo/terminal/a#x", "kagimori://u@demo/terminal/a", "kagimori://demo/terminal/%61",
		"kagimori://demo/server/x", "kagimori:///terminal/a", "kagimori://demo/service//credential/a", "kagimori://demo/service/a/credential/"} {
		if u, err := ParseURI(s); err == nil {
			t.Errorf("%q accepted as %+v", s, u)
		}
	}
}
