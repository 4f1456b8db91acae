package configs

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// programs are the embedded files and what they configure.
func programs() map[string]Program {
	return map[string]Program{"agent.toml": &Agent{}, "gate.toml": &Gate{}, "server.toml": &Server{}}
}

func embedded(t *testing.T, name string) []byte {
	t.Helper()
	data, err := Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fresh is a Program of the same type with the defaults of the code.
func fresh(p Program) Program {
	q := reflect.New(reflect.TypeOf(p).Elem()).Interface().(Program)
	q.setDefaults()
	return q
}

// TestFileIsTheDefault: the embedded file changes nothing.
func TestFileIsTheDefault(t *testing.T) {
	for name, p := range programs() {
		if err := Parse(name, embedded(t, name), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := fresh(p); !reflect.DeepEqual(p, want) {
			t.Errorf("%s says\n%+v\nthe code\n%+v", name, p, want)
		}
	}
}

// TestEveryKeyIsExplained: each key of the structs stands in the file with a
// comment above it, and nothing else does. Sections that may come several
// times stand there as comments; they are read as well.
func TestEveryKeyIsExplained(t *testing.T) {
	for name, p := range programs() {
		var want []string
		keysBelow(reflect.TypeOf(p).Elem(), "", &want)
		got := explained(t, name, string(embedded(t, name)))
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s explains\n%q\nthe structs have\n%q", name, got, want)
		}
	}
}

func keysBelow(typ reflect.Type, at string, list *[]string) {
	for f := range typ.Fields() {
		key := f.Tag.Get("toml")
		*list = append(*list, at+key)
		if inner := f.Type; isTable(inner) {
			keysBelow(inner, at+key+".", list)
		} else if isTables(inner) {
			keysBelow(inner.Elem(), at+key+".", list)
		}
	}
}

var (
	sectionLine = regexp.MustCompile(`^#?\[\[?([a-z_]+)\]\]?$`)
	keyLine     = regexp.MustCompile(`^#?([a-z_]+) = `)
)

// explained lists the keys and sections of a file that have a comment above.
func explained(t *testing.T, name, text string) []string {
	t.Helper()
	var keys []string
	section, before := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key := ""
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			key, section = m[1], m[1]+"."
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			key = section + m[1]
		}
		if key != "" {
			keys = append(keys, key)
			if !strings.HasPrefix(before, "# ") {
				t.Errorf("%s: no comment above %s", name, key)
			}
		}
		before = line
	}
	return keys
}

// TestCommentedSections: what stands in the file as a comment can be used as
// it is.
func TestCommentedSections(t *testing.T) {
	text := string(embedded(t, "agent.toml"))
	text = regexp.MustCompile(`(?m)^#(\[\[|[a-z_]+ = )`).ReplaceAllString(text, "$1")
	var a Agent
	if err := Parse("agent.toml", []byte(text), &a); err != nil {
		t.Fatal(err)
	}
	if want := []Relay{{Service: "maps", Listen: "unix:/run/kagimori/maps.sock"}}; !slices.Equal(a.Relays, want) {
		t.Errorf("%+v", a.Relays)
	}
}
