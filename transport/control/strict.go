// Strict JSON, which encoding/json alone is not.

package control

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// strict decodes one JSON value into v, a pointer. encoding/json alone takes
// names in any case, names twice, broken UTF-8 and data after the value, even
// with DisallowUnknownFields: here the names are compared first. [CTL-3]
func strict(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	walk := json.NewDecoder(bytes.NewReader(data))
	walk.UseNumber()
	if err := exact(walk, reflect.TypeOf(v), 0); err != nil {
		return err
	}
	if _, err := walk.Token(); err != io.EOF {
		return errors.New("there is more after the object")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return readable(err)
	}
	return nil
}

// readable puts a decoder's error in terms of the message, not of Go.
func readable(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("`%s` cannot be a %s", e.Field, e.Value)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("not JSON: it ends too early")
	}
	return fmt.Errorf("not JSON: %w", err)
}

// exact walks one value and holds its objects against t.
func exact(dec *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return readable(err)
	}
	t = plain(t)
	switch tok {
	case json.Delim('{'):
		err = exactObject(dec, t, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for err == nil && dec.More() {
			err = exact(dec, elem, depth+1)
		}
	default:
		return nil
	}
	if err != nil {
		return err
	}
	_, err = dec.Token() // the closing bracket
	if err != nil {
		return readable(err)
	}
	return nil
}

func exactObject(dec *json.Decoder, t reflect.Type, depth int) error {
	known := map[string]reflect.Type{}
	isStruct := t != nil && t.Kind() == reflect.Struct
	if isStruct {
		for _, f := range fieldsOf(t) {
			known[f.name] = f.typ
		}
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return readable(err)
		}
		name, _ := tok.(string) // the decoder takes nothing else as a name
		elem, ok := known[name]
		switch {
		case seen[name]:
			return fmt.Errorf("`%s` is given twice", name)
		case isStruct && !ok:
			return fmt.Errorf("unknown `%s`; known here: %s", name, names(t))
		case t != nil && t.Kind() == reflect.Map:
			elem = t.Elem()
		}
		seen[name] = true
		if err := exact(dec, elem, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// names lists the fields of a struct for a message.
func names(t reflect.Type) string {
	var list []string
	for _, f := range fieldsOf(t) {
		list = append(list, f.name)
	}
	if len(list) == 0 {
		return "nothing"
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// field is one member of a JSON object as encoding/json sees it.
type field struct {
	name     string
	typ      reflect.Type
	optional bool
}

// fieldsOf lists a struct's JSON members in order, embedded structs included.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for f := range t.Fields() {
		tag := f.Tag.Get("json")
		name, opts, _ := strings.Cut(tag, ",")
		if f.Anonymous && name == "" {
			if inner := plain(f.Type); inner != nil && inner.Kind() == reflect.Struct {
				list = append(list, fieldsOf(inner)...)
				continue
			}
		}
		if !f.IsExported() || tag == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		optional := f.Type.Kind() == reflect.Pointer || strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")
		list = append(list, field{name: name, typ: f.Type, optional: optional})
	}
	return list
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
)

// plain strips pointers; it returns nil for what decodes itself.
func plain(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || reflect.PointerTo(t).Implements(textUnmarshaler) || reflect.PointerTo(t).Implements(jsonUnmarshaler) {
		return nil
	}
	return t
}
