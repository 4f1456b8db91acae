// The interface description that a daemon serves, made from Go types.

package control

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/kagimori/kagimori/transport"
)

// An Interface is one Varlink interface: com.kagimori.agent and the like.
type Interface struct {
	Name    string
	Doc     string
	Methods []Method
}

const (
	capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	letters  = capitals + "abcdefghijklmnopqrstuvwxyz"
	alnum    = letters + "0123456789"
)

// isInterface says whether s may name a Varlink interface: labels of letters and
// digits, with dashes inside, two of them at least.
func isInterface(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if strings.Trim(l, alnum+"-") != "" || l == "" || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
	}
	return len(labels) > 1 && strings.Contains(letters, s[:1])
}

// isMethod says whether s may name a method, isField a field of one.
func isMethod(s string) bool {
	return s != "" && strings.Contains(capitals, s[:1]) && strings.Trim(s, alnum) == ""
}

func isField(s string) bool {
	return s != "" && strings.Contains(letters, s[:1]) && strings.Trim(s, alnum+"_") == "" &&
		!strings.HasSuffix(s, "_") && !strings.Contains(s, "__")
}

// describe writes the interface description (the Varlink IDL) from the Go
// types of its methods: it cannot say anything else than the code does.
func (i Interface) describe(errors ...string) (string, error) {
	if !isInterface(i.Name) {
		return "", fmt.Errorf("interface name %q is not one of Varlink", i.Name)
	}
	w := &idl{types: map[string]reflect.Type{}}
	w.doc(i.Doc)
	w.printf("interface %s\n", i.Name)
	for _, m := range i.Methods {
		if !isMethod(m.Name) {
			return "", fmt.Errorf("method name %q is not one of Varlink", m.Name)
		}
		w.printf("\n")
		w.doc(m.Doc)
		w.doc("Needs: " + m.Class.String() + ".")
		if m.Stream {
			w.doc("Answers as a stream: call with more.")
		}
		w.printf("method %s%s -> %s\n", m.Name, w.object(m.In), w.object(m.Out))
	}
	w.printf("%s", w.named.String())
	for _, e := range errors {
		w.printf("\nerror %s\n", e)
	}
	return w.text.String(), w.err
}

// idl gathers the description and the named types that it needs.
type idl struct {
	text, named strings.Builder
	types       map[string]reflect.Type
	err         error
}

func (w *idl) printf(format string, args ...any) { fmt.Fprintf(&w.text, format, args...) }

func (w *idl) doc(s string) {
	for line := range strings.Lines(strings.TrimSpace(s)) {
		w.printf("# %s\n", strings.TrimSpace(line))
	}
}

// object writes the members of a prototype; nil has none.
func (w *idl) object(prototype any) string {
	if prototype == nil {
		return "()"
	}
	t := plain(reflect.TypeOf(prototype))
	if t == nil || t.Kind() != reflect.Struct {
		w.err = fmt.Errorf("%T: parameters must be a struct", prototype)
		return "()"
	}
	return w.members(t)
}

func (w *idl) members(t reflect.Type) string {
	var list []string
	for _, f := range fieldsOf(t) {
		if !isField(f.name) {
			w.err = fmt.Errorf("%s: member name %q is not one of Varlink", t, f.name)
		}
		typ := w.typ(f.typ)
		if f.optional && !strings.HasPrefix(typ, "?") {
			typ = "?" + typ
		}
		list = append(list, f.name+": "+typ)
	}
	return "(" + strings.Join(list, ", ") + ")"
}

// typ writes a Go type as Varlink's, named structs once each.
func (w *idl) typ(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[transport.Sensitive]():
		w.err = fmt.Errorf("%s crosses the control socket only sealed, as a string: see SealTo", t)
		return "string"
	case t == reflect.TypeFor[json.RawMessage]():
		return "object"
	case t.Kind() == reflect.Pointer:
		return "?" + strings.TrimPrefix(w.typ(t.Elem()), "?")
	case t.Implements(jsonMarshaler) && !t.Implements(textMarshaler):
		return "object"
	case t.Implements(textMarshaler):
		return "string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "int"
	case reflect.Float32, reflect.Float64:
		return "float"
	case reflect.String:
		return "string"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "string" // base64
		}
		return "[]" + w.typ(t.Elem())
	case reflect.Map:
		return "[string]" + w.typ(t.Elem())
	case reflect.Struct:
		return w.structure(t)
	case reflect.Interface:
		return "object"
	}
	w.err = fmt.Errorf("%s has no Varlink type", t)
	return "object"
}

func (w *idl) structure(t reflect.Type) string {
	if t.Name() == "" {
		return w.members(t)
	}
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if old, ok := w.types[name]; ok {
		if old != t {
			w.err = fmt.Errorf("%s and %s would both be called %s", old, t, name)
		}
		return name
	}
	w.types[name] = t
	fmt.Fprintf(&w.named, "\ntype %s %s\n", name, w.members(t))
	return name
}
