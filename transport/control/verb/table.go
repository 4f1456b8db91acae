package verb

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// A Cell is a text with a meaning that a terminal shows in colour.
type Cell struct {
	text string
	ansi string
}

// Good, Warn, Bad and Dim make cells: green, yellow, red, faint.
func Good(text string) Cell { return Cell{text, "32"} }
func Warn(text string) Cell { return Cell{text, "33"} }
func Bad(text string) Cell  { return Cell{text, "31"} }
func Dim(text string) Cell  { return Cell{text, "2"} }

// cell makes one of anything.
func cell(v any) Cell {
	c, ok := v.(Cell)
	if !ok {
		c.text = fmt.Sprint(v)
	}
	c.text = clean(c.text, false)
	return c
}

// paint writes a cell padded to width, in colour if the writer wants it.
func paint(w io.Writer, c Cell, width int) {
	pad := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(c.text)))
	if s, ok := w.(*screen); ok && s.colour && c.ansi != "" {
		fmt.Fprintf(w, "\x1b[%sm%s\x1b[0m%s", c.ansi, c.text, pad)
		return
	}
	fmt.Fprint(w, c.text, pad)
}

// A Table prints rows under headings, columns as wide as their widest cell.
type Table struct {
	w    io.Writer
	rows [][]Cell
}

// NewTable makes one that prints to w, the writer that Print hands out.
func NewTable(w io.Writer, headings ...string) *Table {
	t := &Table{w: w}
	row := make([]Cell, len(headings))
	for i, h := range headings {
		row[i] = Dim(h)
	}
	t.rows = append(t.rows, row)
	return t
}

// Row adds one row: Cells, or anything that fmt.Sprint prints.
func (t *Table) Row(cells ...any) {
	row := make([]Cell, len(cells))
	for i, c := range cells {
		row[i] = cell(c)
	}
	t.rows = append(t.rows, row)
}

// Flush prints the table, or empty (what to do to get a row) without one.
func (t *Table) Flush(empty string) {
	if len(t.rows) == 1 {
		fmt.Fprintln(t.w, empty)
		return
	}
	if s, ok := t.w.(*screen); ok && s.width > 0 {
		narrow(t.rows, s.width)
	}
	writeRows(t.w, t.rows)
}

// leastColumn is as narrow as a column is made.
const leastColumn = 8

// narrow cuts the widest columns until rows fit a screen, but never the first
// one: it holds what other verbs want to be given. --json shows all.
func narrow(rows [][]Cell, screen int) {
	widths := columns(rows)
	for {
		sum, widest := -2, 0
		for i, w := range widths {
			if sum += w + 2; i > 0 && (widest == 0 || w > widths[widest]) {
				widest = i
			}
		}
		if sum <= screen || widest == 0 || widths[widest] <= leastColumn {
			break
		}
		widths[widest]--
	}
	for _, row := range rows {
		for i := range row {
			if text := []rune(row[i].text); i > 0 && len(text) > widths[i] {
				row[i].text = string(text[:widths[i]-1]) + "…"
			}
		}
	}
}

// Fields prints pairs of name and value, one a line: the detail view.
func Fields(w io.Writer, pairs ...any) {
	var rows [][]Cell
	for i := 0; i+1 < len(pairs); i += 2 {
		rows = append(rows, []Cell{Dim(fmt.Sprint(pairs[i])), cell(pairs[i+1])})
	}
	writeRows(w, rows)
}

// columns gives the width of each column.
func columns(rows [][]Cell) (widths []int) {
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	return widths
}

func writeRows(w io.Writer, rows [][]Cell) {
	widths := columns(rows)
	for _, row := range rows {
		for i, c := range row {
			if i == len(row)-1 {
				paint(w, c, 0)
				break
			}
			paint(w, c, widths[i]+2)
		}
		fmt.Fprintln(w)
	}
}
