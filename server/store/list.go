package store

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// Lists are paged by key, never by offset: a page costs the same wherever it
// is. What may be sorted and filtered by stands in a table here; nothing that a
// caller says becomes SQL.

const (
	// DefaultPage and MaxPage are how many rows a page has.
	DefaultPage, MaxPage = 100, 200
)

// ErrQuery is a list that cannot be given: an unknown column or value, or a
// false cursor.
var ErrQuery = errors.New("this list cannot be given")

// A Query asks for one page of a list.
type Query struct {
	Sort   string            // column; empty: the list's key
	Desc   bool              // largest first
	Limit  int               // rows; 0: DefaultPage, at most MaxPage
	After  string            // Next of the page before
	Filter map[string]string // column: value that it must have
	Now    time.Time         // what "in force" and "expired" are judged by
}

// A listing is what can be asked of a table.
type listing struct {
	table, columns string
	key            string            // column that is unique and breaks ties
	sort           map[string]string // name: expression, never NULL
	filter         map[string]string // name: condition, ? stands for the value
	// words are filters that know few values: name, value: condition, ? stands
	// for the query's time.
	words map[string]map[string]string
}

// page reads one page and the cursor of the next, empty at the end.
func page[T any](t *Tx, l listing, q Query, scan func(scanner) (T, error)) (list []T, next string, err error) {
	query, args, err := l.sql(q)
	if err != nil {
		return nil, "", err
	}
	limit := q.Rows()
	type row struct {
		v         T
		sort, key any
	}
	rows, err := all(t, func(r scanner) (x row, err error) {
		x.v, err = scan(withTail{r, []any{&x.sort, &x.key}})
		return x, err
	}, query, append(args, limit+1)...)
	if err != nil {
		return nil, "", err
	}
	if len(rows) > limit {
		rows = rows[:limit]
		if next, err = encodeCursor(q, rows[limit-1].sort, rows[limit-1].key); err != nil {
			return nil, "", err
		}
	}
	for _, x := range rows {
		list = append(list, x.v)
	}
	return list, next, nil
}

// Rows is how many rows a page of it has at most.
func (q Query) Rows() int {
	if q.Limit <= 0 {
		return DefaultPage
	}
	return min(q.Limit, MaxPage)
}

// sql writes the query; its last argument, the limit, is missing.
func (l listing) sql(q Query) (string, []any, error) {
	expression := l.key
	if q.Sort != "" {
		var ok bool
		if expression, ok = l.sort[q.Sort]; !ok {
			return "", nil, fmt.Errorf("%w: there is no column %q to sort by; there are: %s", ErrQuery, q.Sort, names(l.sort))
		}
	}
	var where []string
	var args []any
	for _, name := range slices.Sorted(maps.Keys(q.Filter)) {
		condition, arg, err := l.condition(name, q)
		if err != nil {
			return "", nil, err
		}
		where = append(where, condition)
		for range strings.Count(condition, "?") {
			args = append(args, arg)
		}
	}
	direction, beyond := "ASC", ">"
	if q.Desc {
		direction, beyond = "DESC", "<"
	}
	if q.After != "" {
		sort, key, err := decodeCursor(q)
		if err != nil {
			return "", nil, err
		}
		where = append(where, fmt.Sprintf("(%s, %s) %s (?, ?)", expression, l.key, beyond))
		args = append(args, sort, key)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "SELECT %s, %s, %s FROM %s", l.columns, expression, l.key, l.table)
	if len(where) > 0 {
		b.WriteString(" WHERE " + strings.Join(where, " AND "))
	}
	fmt.Fprintf(&b, " ORDER BY %s %s, %s %s LIMIT ?", expression, direction, l.key, direction)
	return b.String(), args, nil
}

// condition is what one filter of a query asks for.
func (l listing) condition(name string, q Query) (condition string, arg any, err error) {
	if condition, ok := l.filter[name]; ok {
		return condition, q.Filter[name], nil
	}
	words, ok := l.words[name]
	if !ok {
		both := slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(l.filter)), slices.Collect(maps.Keys(l.words)))))
		return "", nil, fmt.Errorf("%w: there is no column %q to filter by; there are: %s", ErrQuery, name, strings.Join(both, ", "))
	}
	if condition, ok = words[q.Filter[name]]; !ok {
		return "", nil, fmt.Errorf("%w: %s is never %q; it is one of: %s", ErrQuery, name, q.Filter[name], names(words))
	}
	return condition, toMillis(q.Now), nil
}

func names(m map[string]string) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}

// column makes the words of a column that has just these values.
func column[T ~string](name string, values ...T) map[string]string {
	words := map[string]string{}
	for _, v := range values {
		words[string(v)] = fmt.Sprintf("%s = '%s'", name, v)
	}
	return words
}

// credentialStates are the states of credentials, and those that people see
// instead of "active".
func credentialStates() map[string]string {
	const inForce = `id IN (SELECT h.credential FROM holdings h JOIN certificates c ON c.serial = h.serial WHERE h.state <> 'ended' AND c.not_after > ?)`
	words := column("state", CredentialOrdered, CredentialActive, CredentialRefused, CredentialWithdrawn, CredentialRevoked)
	words["in force"] = "state = 'active' AND " + inForce
	words["expired"] = "state = 'active' AND expires <= ?"
	words["held by nobody"] = "state = 'active' AND expires > ? AND NOT " + inForce
	return words
}

// withTail reads columns that follow those that a scan function asks for.
type withTail struct {
	scanner
	tail []any
}

func (w withTail) Scan(dest ...any) error { return w.scanner.Scan(append(dest, w.tail...)...) }

// A cursor is the sort value and key of the last row, and what list they are
// of, so that a page of another list is not continued by mistake.
type cursor struct {
	Sort string `json:"s"`
	Desc bool   `json:"d"`
	Last []any  `json:"l"`
}

func encodeCursor(q Query, sort, key any) (string, error) {
	data, err := json.Marshal(cursor{q.Sort, q.Desc, []any{sort, key}})
	return base64.RawURLEncoding.EncodeToString(data), err
}

func decodeCursor(q Query) (sort, key any, err error) {
	data, err := base64.RawURLEncoding.DecodeString(q.After)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %q is not a page", ErrQuery, q.After)
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var c cursor
	if err := d.Decode(&c); err != nil || len(c.Last) != 2 || c.Sort != q.Sort || c.Desc != q.Desc {
		return nil, nil, fmt.Errorf("%w: %q is not a page of this list", ErrQuery, q.After)
	}
	for i, v := range c.Last {
		switch v := v.(type) {
		case string:
		case json.Number:
			if c.Last[i], err = v.Int64(); err != nil {
				return nil, nil, fmt.Errorf("%w: %q is not a page of this list", ErrQuery, q.After)
			}
		default:
			return nil, nil, fmt.Errorf("%w: %q is not a page of this list", ErrQuery, q.After)
		}
	}
	return c.Last[0], c.Last[1], nil
}

// Terminals lists terminals; the key is the name.
func (t *Tx) Terminals(q Query) (list []Terminal, next string, err error) {
	return page(t, listing{
		table: "terminals", columns: terminalColumns, key: "name",
		sort:   map[string]string{"name": "name", "kind": "kind", "group": "group_name", "state": "state", "created": "created", "seen": "seen"},
		filter: map[string]string{"name": "name = ?", "group": "group_name = ?", "service": "service = ?"},
		words: map[string]map[string]string{"kind": column("kind", KindTerminal, KindGate),
			"state": column("state", TerminalExpected, TerminalEnrolled, TerminalRemoved)},
	}, q, scanTerminal)
}

// Credentials lists credentials; the key is the id.
func (t *Tx) Credentials(q Query) (list []Credential, next string, err error) {
	return page(t, listing{
		table: "credentials", columns: credentialColumns, key: "id",
		sort: map[string]string{"id": "id", "kind": "kind", "service": "service", "subject": "subject", "usage": "usage", "state": "state",
			"expires": "expires", "operation": "operation", "operated": "operated"},
		words: map[string]map[string]string{"kind": column("kind", transport.KindCertificate), "state": credentialStates(),
			"usage": column("usage", transport.UsageClient, transport.UsageServer)},
		filter: map[string]string{"id": "id = ?", "service": "service = ?", "subject": "subject = ?",
			// Whoever is told to make the key counts too, before there is a holding.
			"terminal": `id IN (SELECT credential FROM holdings WHERE terminal = ? AND state <> 'ended'
				UNION SELECT credential FROM commands WHERE terminal = ? AND state = 'pending' AND kind = 'credential.issue')`},
	}, q, scanCredential)
}
