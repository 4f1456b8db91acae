// Package qr draws short texts as QR codes (ISO/IEC 18004), for a camera to read
// off a screen or a terminal: bytes, error correction level L, versions 1 to 9.
// A library for all of the standard costs the agent 52 KiB, this 8; a real
// decoder is asked in the tests. START HERE: Encode and the two ways to show a
// Code; pattern.go is where everything goes.
package qr

import (
	"errors"
	"strings"
)

// MaxText is how many bytes a text may have.
const MaxText = 230

// quiet is how many light modules go around a code (§5.3.8).
const quiet = 4

// ErrTooLong is a text of more than MaxText bytes, or none.
var ErrTooLong = errors.New("the text does not fit a QR code")

// A Code is square; Dark says so of the module in column x, row y.
type Code struct {
	Size int
	dark []bool
	kept []bool // it is of the pattern, no mask changes it
}

// Dark is false outside of the code.
func (c *Code) Dark(x, y int) bool {
	return x >= 0 && y >= 0 && x < c.Size && y < c.Size && c.dark[y*c.Size+x]
}

// Rows are the code without the light margin that it needs around it, "1" for
// dark: for a program that draws it.
func (c *Code) Rows() []string {
	rows := make([]string, c.Size)
	for y := range rows {
		row := make([]byte, c.Size)
		for x := range row {
			row[x] = '0'
			if c.Dark(x, y) {
				row[x] = '1'
			}
		}
		rows[y] = string(row)
	}
	return rows
}

// Blocks draws rows, as Rows gives them, with the margin and two rows of modules
// in one of characters. Light is drawn and dark left out: that is right on dark
// terminals, and cameras read the inverse on light ones.
func Blocks(rows []string) string {
	light := func(x, y int) bool {
		return y < 0 || y >= len(rows) || x < 0 || x >= len(rows[y]) || rows[y][x] != '1'
	}
	var b strings.Builder
	for y := -quiet; y < len(rows)+quiet; y += 2 {
		for x := -quiet; x < len(rows)+quiet; x++ {
			switch up, down := light(x, y), y+1 < len(rows)+quiet && light(x, y+1); {
			case up && down:
				b.WriteRune('█')
			case up:
				b.WriteRune('▀')
			case down:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Width is how many columns Blocks takes for n rows of modules, Height how many lines.
func Width(n int) int  { return n + 2*quiet }
func Height(n int) int { return (n + 2*quiet + 1) / 2 }

// Encode makes the smallest code that holds text.
func Encode(text string) (*Code, error) {
	v := 1
	for v <= len(versions) && len(text) > versions[v-1].text() {
		v++
	}
	if v > len(versions) || text == "" {
		return nil, ErrTooLong
	}
	c := newCode(v)
	c.place(versions[v-1].codewords(text))
	best := c.masked(0)
	for mask, least := 1, best.penalty(); mask < masks; mask++ {
		if m := c.masked(mask); m.penalty() < least {
			best, least = m, m.penalty()
		}
	}
	return best, nil
}

// A version has blocks of the same length, at level L up to version 9.
type version struct {
	blocks, data, ecc int // ecc and data are codewords of one block
	align             []int
}

// versions are Table 9 and Table E.1 of the standard.
var versions = [...]version{
	{1, 19, 7, nil},
	{1, 34, 10, []int{6, 18}},
	{1, 55, 15, []int{6, 22}},
	{1, 80, 20, []int{6, 26}},
	{1, 108, 26, []int{6, 30}},
	{2, 68, 18, []int{6, 34}},
	{2, 78, 20, []int{6, 22, 38}},
	{2, 97, 24, []int{6, 24, 42}},
	{2, 116, 30, []int{6, 26, 46}},
}

// text is how many bytes fit: mode and length take 12 bits.
func (v version) text() int { return v.blocks*v.data - 2 }

// codewords are the text's with those that correct errors, interleaved.
func (v version) codewords(text string) []byte {
	data := make([]byte, 0, v.blocks*v.data)
	n := byte(len(text))
	data = append(data, 0x40|n>>4, n<<4|text[0]>>4) // 0100: bytes; everything is half a byte off
	for i := 1; i < len(text); i++ {
		data = append(data, text[i-1]<<4|text[i]>>4)
	}
	data = append(data, text[len(text)-1]<<4) // and 0000 ends it
	for pad := byte(0xec); len(data) < cap(data); pad ^= 0xec ^ 0x11 {
		data = append(data, pad)
	}
	divisor := generator(v.ecc)
	ecc := make([][]byte, v.blocks)
	for b := range ecc {
		ecc[b] = remainder(data[b*v.data:(b+1)*v.data], divisor)
	}
	out := make([]byte, 0, v.blocks*(v.data+v.ecc))
	for i := range v.data {
		for b := range v.blocks {
			out = append(out, data[b*v.data+i])
		}
	}
	for i := range v.ecc {
		for b := range v.blocks {
			out = append(out, ecc[b][i])
		}
	}
	return out
}

// multiply is in GF(2^8) modulo x^8+x^4+x^3+x^2+1.
func multiply(a, b byte) (p byte) {
	for i := 7; i >= 0; i-- {
		p = p<<1 ^ p>>7*0x1d
		p ^= b >> i & 1 * a
	}
	return p
}

// generator is the Reed-Solomon generator polynomial of a degree, highest power
// first, without the leading 1.
func generator(degree int) []byte {
	g := make([]byte, degree)
	g[degree-1] = 1
	root := byte(1)
	for range degree {
		for i := range g {
			g[i] = multiply(g[i], root)
			if i+1 < degree {
				g[i] ^= g[i+1]
			}
		}
		root = multiply(root, 2)
	}
	return g
}

func remainder(data, divisor []byte) []byte {
	r := make([]byte, len(divisor))
	for _, d := range data {
		factor := d ^ r[0]
		copy(r, r[1:])
		r[len(r)-1] = 0
		for i := range r {
			r[i] ^= multiply(divisor[i], factor)
		}
	}
	return r
}
