package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// A decoder fills a configuration from a file. The parser is go-toml's. The way
// from its tree to our few types is here: go-toml's own takes keys in another
// case, and would be another 0.15 MiB of the agent.
type decoder struct {
	parser unstable.Parser
	file   string
	lines  map[string]int // of what the file says, by its dotted key
	errs   []error
}

// decode sets what the file says. Its errors are *Error.
func (d *decoder) decode(data []byte, cfg Program) {
	root := reflect.ValueOf(cfg).Elem()
	d.parser.Reset(data)
	d.lines = map[string]int{}
	table, at := root, ""
	for d.parser.NextExpression() {
		switch e := d.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, at = d.section(root, e)
		case unstable.KeyValue:
			if table.IsValid() {
				d.keyValue(table, at, e)
			}
		}
	}
	if err, ok := d.parser.Error().(*unstable.ParserError); ok {
		line := d.line(d.parser.Range(err.Highlight))
		d.errs = append(d.errs, &Error{File: d.file, Line: line, Message: err.Message, Next: "correct the line", cause: err})
	}
}

// section finds the table of a header, and says where that is; the zero Value if
// there is none.
func (d *decoder) section(root reflect.Value, header *unstable.Node) (table reflect.Value, at string) {
	field, key, line := d.find(root, "", header.Key())
	switch {
	case !field.IsValid():
	case header.Kind == unstable.ArrayTable && isTables(field.Type()):
		if d.lines[key] == 0 || d.once(key, line) { // else it is assigned to as well
			i := field.Len()
			field.Set(reflect.Append(field, reflect.Zero(field.Type().Elem())))
			at = fmt.Sprintf("%s[%d]", key, i)
			d.lines[at] = line
			return field.Index(i), at + "."
		}
	case header.Kind == unstable.Table && isTable(field.Type()):
		if d.once(key, line) {
			return field, key + "."
		}
	case isTables(field.Type()):
		d.report(key, line, "write [[%s]], since there may be several", key)
	default:
		d.report(key, line, "is not a section of that kind")
	}
	return reflect.Value{}, ""
}

// keyValue sets one key of a table.
func (d *decoder) keyValue(table reflect.Value, at string, kv *unstable.Node) {
	field, key, line := d.find(table, at, kv.Key())
	if field.IsValid() && d.once(key, line) {
		d.value(field, key, line, kv.Value())
	}
}

// find looks a dotted key up below a table.
func (d *decoder) find(table reflect.Value, at string, parts unstable.Iterator) (field reflect.Value, key string, line int) {
	field, key = table, at
	for dot := ""; parts.Next(); dot = "." {
		line = d.line(parts.Node().Raw)
		name := string(parts.Node().Data)
		key += dot + name
		inner := reflect.Value{}
		if isTable(field.Type()) {
			table, inner = field, fieldOf(field, name)
		}
		if !inner.IsValid() {
			for parts.Next() {
				key += "." + string(parts.Node().Data)
			}
			d.errs = append(d.errs, &Error{File: d.file, Line: line, Key: key, Next: "correct or remove the key",
				Message: fmt.Sprintf("unknown key `%s`; known keys here: %s", key, strings.Join(keysOf(table.Type()), ", "))})
			return inner, key, line
		}
		field = inner
	}
	return field, key, line
}

// value sets one value.
func (d *decoder) value(v reflect.Value, key string, line int, n *unstable.Node) {
	kinds := map[reflect.Kind]unstable.Kind{reflect.String: unstable.String, reflect.Bool: unstable.Bool, reflect.Int: unstable.Integer,
		reflect.Slice: unstable.Array, reflect.Struct: unstable.InlineTable}
	duration, isDuration := v.Addr().Interface().(*Duration)
	switch {
	case isDuration && n.Kind != unstable.Array && n.Kind != unstable.InlineTable:
		_ = duration.UnmarshalText(n.Data) // check reports what is wrong
	case isDuration || n.Kind != kinds[v.Kind()]:
		d.report(key, line, "this cannot be a TOML %s", strings.ToLower(n.Kind.String()))
	case v.Kind() == reflect.String:
		v.SetString(string(n.Data))
	case v.Kind() == reflect.Bool:
		v.SetBool(string(n.Data) == "true")
	case v.Kind() == reflect.Int:
		i, err := strconv.ParseInt(string(n.Data), 0, strconv.IntSize)
		if err != nil {
			d.report(key, line, "%s is too large", n.Data)
		}
		v.SetInt(i)
	case v.Kind() == reflect.Slice:
		d.array(v, key, n)
	default:
		for kv := n.Children(); kv.Next(); {
			d.keyValue(v, key+".", kv.Node())
		}
	}
}

// array replaces what is there by default.
func (d *decoder) array(v reflect.Value, key string, n *unstable.Node) {
	list := reflect.MakeSlice(v.Type(), 0, 0)
	for e := n.Children(); e.Next(); {
		list = reflect.Append(list, reflect.Zero(v.Type().Elem()))
		i := list.Len() - 1
		d.value(list.Index(i), fmt.Sprintf("%s[%d]", key, i), d.lines[key], e.Node())
	}
	v.Set(list)
}

// once notes where a key stands, and reports it if it stands elsewhere already.
func (d *decoder) once(key string, line int) bool {
	if first := d.lines[key]; first > 0 {
		d.report(key, line, "is there twice, first in line %d", first)
		return false
	}
	d.lines[key] = line
	return true
}

func (d *decoder) report(key string, line int, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: line, Key: key, Message: key + ": " + fmt.Sprintf(format, args...), Next: "correct the line"})
}

func (d *decoder) line(r unstable.Range) int { return d.parser.Shape(r).Start.Line }

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Duration]()
}
func isTables(t reflect.Type) bool { return t.Kind() == reflect.Slice && isTable(t.Elem()) }

// fieldOf is the field of a key, by its exact name.
func fieldOf(table reflect.Value, key string) reflect.Value {
	for i := range table.NumField() {
		if table.Type().Field(i).Tag.Get("toml") == key {
			return table.Field(i)
		}
	}
	return reflect.Value{}
}

// keysOf lists the keys of a table, sorted.
func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		keys = append(keys, f.Tag.Get("toml"))
	}
	slices.Sort(keys)
	return keys
}
