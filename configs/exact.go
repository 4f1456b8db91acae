package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// checkNames holds the names in the file against those of the structs: the
// decoder also takes them in another case.
func checkNames(data []byte, cfg Program, report report) {
	var tree map[string]any
	if toml.Unmarshal(data, &tree) != nil {
		return // the decoder before us took it
	}
	exact(tree, reflect.TypeOf(cfg).Elem(), "", report)
}

func exact(table map[string]any, t reflect.Type, at string, report report) {
	known := keysOf(t)
	for key, value := range table {
		if !slices.Contains(known, key) {
			report(at+key, unknownKey, at+key, strings.Join(known, ", "))
			continue
		}
		inner := tableOf(t, key)
		if inner == nil {
			continue
		}
		switch value := value.(type) {
		case map[string]any:
			exact(value, inner, at+key+".", report)
		case []any:
			for i, v := range value {
				if m, ok := v.(map[string]any); ok {
					exact(m, inner, fmt.Sprintf("%s%s[%d].", at, key, i), report)
				}
			}
		}
	}
}

const unknownKey = "unknown key `%s`; known keys here: %s"

// keysOf lists the keys of a table, sorted.
func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		keys = append(keys, f.Tag.Get("toml"))
	}
	slices.Sort(keys)
	return keys
}

// knownKeys lists what may stand beside the unknown key: the keys of the
// deepest table on its way that exists.
func knownKeys(cfg Program, key []string) []string {
	t := reflect.TypeOf(cfg).Elem()
	for _, part := range key[:len(key)-1] {
		next := tableOf(t, part)
		if next == nil {
			break
		}
		t = next
	}
	return keysOf(t)
}

// tableOf is the struct type of a table in t, or nil.
func tableOf(t reflect.Type, name string) reflect.Type {
	for f := range t.Fields() {
		if f.Tag.Get("toml") != name {
			continue
		}
		elem := f.Type
		if elem.Kind() == reflect.Slice {
			elem = elem.Elem()
		}
		if elem.Kind() == reflect.Struct && elem != reflect.TypeFor[Duration]() {
			return elem
		}
	}
	return nil
}

// lineOf finds the line of a dotted key ("gate.upstream", "relay[1].listen")
// for a message; 0 when it is not written plainly as `key = value` under its
// `[section]`, or as a section.
func lineOf(data []byte, dotted string) int {
	i := strings.LastIndexByte(dotted, '.')
	section, key := dotted[:max(i, 0)], dotted[i+1:]
	want := 1 // which of several sections of that name
	if b := strings.IndexByte(section, '['); b >= 0 {
		fmt.Sscanf(section[b:], "[%d]", &want)
		want++
		section = section[:b]
	}
	at, seen := "", map[string]int{"": 1}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if strings.HasPrefix(line, "[") {
			at = strings.Trim(line, "[] \t")
			seen[at]++
			if at == dotted {
				return n
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if ok && at == section && seen[at] == want && strings.TrimSpace(name) == key {
			return n
		}
	}
	return 0
}
