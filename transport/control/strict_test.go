package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// nested is a struct with everything that strict walks.
type nested struct {
	embedded
	Name  string            `json:"name"`
	List  []echo            `json:"list,omitempty"`
	Map   map[string]echo   `json:"map,omitempty"`
	Any   json.RawMessage   `json:"any,omitempty"`
	Time  time.Time         `json:"time,omitzero"`
	Deep  *nested           `json:"deep,omitempty"`
	Flags map[string]string `json:"-"`
}

type embedded struct {
	ID int `json:"id"`
}

func TestStrict(t *testing.T) {
	for in, want := range map[string]string{
		`{}`: "",
		`{"name":"x","id":3,"list":[{"text":"a"}],"map":{"k":{"text":"b"}},"any":{"x":[1,{"y":2}]},"time":"2026-01-01T00:00:00Z","deep":{"name":"y"}}`: "",
		` { "name" : null } `:                         "",
		`{"Name":"x"}`:                                "unknown `Name`; known here: any, deep, id, list, map, name, time",
		`{"name":"x","name":"y"}`:                     "`name` is given twice",
		`{"name":"x","\u006eame":"y"}`:                "`name` is given twice",
		`{"list":[{"txt":"a"}]}`:                      "unknown `txt`; known here: text",
		`{"map":{"k":{"text":"a","text":"b"}}}`:       "`text` is given twice",
		`{"map":{"k":{},"k":{}}}`:                     "`k` is given twice",
		`{"any":{"k":1,"k":2}}`:                       "`k` is given twice",
		`{"deep":{"deep":{"x":1}}}`:                   "unknown `x`; known here: any, deep, id, list, map, name, time",
		`{"Flags":{}}`:                                "unknown `Flags`",
		`{"name":"x"} `:                               "",
		`{"name":"x"}x`:                               "there is more after the object",
		`{"name":"x"}{}`:                              "there is more after the object",
		`{"name":"x"`:                                 "not JSON: it ends too early",
		`{"name":"x",}`:                               "not JSON",
		`{name:"x"}`:                                  "not JSON",
		`{"id":"x"}`:                                  "id` cannot be a string",
		`{"id":1.5}`:                                  "id` cannot be a number 1.5",
		"{\"name\":\"\xff\"}":                         "not UTF-8",
		strings.Repeat(`{"deep":`, 20) + "1":          "nested deeper than 16",
		strings.Repeat(`[`, 10_000):                   "nested deeper than 16",
		`{"any":` + strings.Repeat(`[`, 10_000) + `}`: "nested deeper than 16",
	} {
		err := strict([]byte(in), &nested{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.60s: %v, want %q", in, err, want)
		}
	}
}

// FuzzRequest: what is taken as a call has one meaning, and says it again.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"method":"org.varlink.service.GetInfo"}`,
		`{"method":"com.kagimori.test.Echo","parameters":{"name":"x","id":3,"list":[{"text":"a"}]},"more":true}`,
		`{"method":"a.b.C","oneway":true,"parameters":{"map":{"k":{"text":"b"}},"any":[[],{}]}}`,
		`{"method":"a.b.C","method":"a.b.D"}`, `{"METHOD":"a.b.C"}`, `{`, `[]`, `null`, `{"method":"a.b.C"}x`, "\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		second, err := parseRequest(again)
		if err != nil || second.Method != r.Method || second.More != r.More || second.Oneway != r.Oneway {
			t.Fatalf("%s\nbecame\n%s: %v", data, again, err)
		}
		if n := bytes.Count(data, []byte(`"method"`)); n == 0 && !bytes.Contains(data, []byte(`\u`)) {
			t.Fatalf("%s: no method, but taken", data)
		}
		call := &Call{request: r}
		var p nested
		if call.Params(&p) == nil {
			if _, err := json.Marshal(p); err != nil {
				t.Fatalf("%s: %v", data, err)
			}
		}
	})
}

// FuzzFrame: a stream falls into messages without loss, none too long.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("{}\x00{}\x00"))
	f.Add([]byte("\x00\x00x"))
	f.Add([]byte("12345678\x00123456789\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), 16)
		var back []byte
		for {
			frame, err := splitFrame(r, 8)
			if err != nil {
				break
			}
			if len(frame) > 8 || bytes.IndexByte(frame, 0) >= 0 {
				t.Fatalf("a message of %d bytes", len(frame))
			}
			back = append(append(back, frame...), 0)
		}
		if !bytes.HasPrefix(data, back) {
			t.Fatal("the messages are not the stream")
		}
	})
}
