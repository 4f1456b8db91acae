package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

type item struct {
	ID    string        `json:"id"`
	Since time.Time     `json:"since"`
	Left  time.Duration `json:"left,omitempty"`
	Share float64       `json:"share"`
	Raw   []byte        `json:"raw"`
	Parts []*item       `json:"parts,omitempty"`
}

type page struct {
	Items []item            `json:"items"`
	Tags  map[string]string `json:"tags"`
	More  *bool             `json:"more"`
	Extra json.RawMessage   `json:"extra,omitempty"`
	Point struct {
		X int `json:"x"`
	} `json:"point"`
}

func TestDescription(t *testing.T) {
	const want = `# Things.
# Two lines.
interface com.kagimori.things

# Lists them.
# Needs: operate.
# Answers as a stream: call with more.
method List(text: string) -> (items: []Item, tags: [string]string, more: ?bool, extra: ?object, point: (x: int))

# Needs: admin.
method Wipe() -> ()

type Item (id: string, since: string, left: ?int, share: float, raw: string, parts: ?[]?Item)
`
	nothing := func(context.Context, *Call) error { return nil }
	got, err := Interface{Name: "com.kagimori.things", Doc: "Things.\nTwo lines.\n", Methods: []Method{
		{Name: "List", Doc: "Lists them.", Class: Operate, Stream: true, In: echo{}, Out: page{}, Handle: nothing},
		{Name: "Wipe", Class: Admin, Handle: nothing},
	}}.describe()
	if err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

// TestSensitiveStaysOut: a secret that somebody puts into a message as it is
// does not get past New.
func TestSensitiveStaysOut(t *testing.T) {
	type leak struct {
		Code transport.Sensitive `json:"code"`
	}
	_, err := New(Options{}, slog.New(slog.DiscardHandler), Interface{Name: "com.kagimori.x", Methods: []Method{
		{Name: "A", Out: leak{}, Handle: func(context.Context, *Call) error { return nil }},
	}})
	if err == nil || !strings.Contains(err.Error(), "only sealed") {
		t.Error(err)
	}
}

func TestDescriptionServed(t *testing.T) {
	c := serve(t, nil, nil).dial(t)
	for name, want := range map[string]string{
		"org.varlink.service": "method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)",
		"com.kagimori":        "error Problem (kind: string, message: string, next: ?string)",
		"com.kagimori.test":   "method Echo(text: string) -> (text: string)",
	} {
		var out description
		err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", interfaceParam{name}, &out)
		if err != nil || !strings.Contains(out.Description, want+"\n") {
			t.Errorf("%s: %v\n%s", name, err, out.Description)
		}
	}
}
