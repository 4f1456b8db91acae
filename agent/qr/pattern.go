package qr

// Where everything goes: the patterns by which a camera finds a code, the data
// around them, and the masks that keep the whole grey.

const (
	masks = 8
	// formatL is level L in format information; generators and masks of the two
	// BCH codes are of Annexes C and D.
	formatL        = 1 << 3
	formatCode     = 0x537
	formatMask     = 0x5412
	versionCode    = 0x1f25
	versionFrom    = 7 // smaller versions do not say which they are
	finder, timing = 7, 6
)

func newCode(v int) *Code {
	n := 17 + 4*v
	c := &Code{Size: n, dark: make([]bool, n*n), kept: make([]bool, n*n)}
	for i := range n {
		c.keep(timing, i, i%2 == 0)
		c.keep(i, timing, i%2 == 0)
	}
	for _, at := range [][2]int{{3, 3}, {n - 4, 3}, {3, n - 4}} {
		c.square(at[0], at[1], 4) // with the light line around it
	}
	at := versions[v-1].align
	for i, x := range at {
		for j, y := range at {
			first, last := 0, len(at)-1
			if i == first && j == first || i == first && j == last || i == last && j == first {
				continue // a finder is there
			}
			c.square(x, y, 2)
		}
	}
	c.format(0) // keeps its place
	if v >= versionFrom {
		bits := v<<12 | bch(v, 12, versionCode)
		for i := range 18 {
			on := bits>>i&1 == 1
			c.keep(n-11+i%3, i/3, on)
			c.keep(i/3, n-11+i%3, on)
		}
	}
	return c
}

// square draws rings around (x, y) up to a distance: all but the second and the
// fifth are dark.
func (c *Code) square(x, y, far int) {
	for dy := -far; dy <= far; dy++ {
		for dx := -far; dx <= far; dx++ {
			d := max(dx, -dx, dy, -dy)
			light := d == 4 || d == 2 && far == 4 || d == 1 && far == 2
			c.keep(x+dx, y+dy, !light)
		}
	}
}

func (c *Code) keep(x, y int, dark bool) {
	if x >= 0 && y >= 0 && x < c.Size && y < c.Size {
		c.dark[y*c.Size+x], c.kept[y*c.Size+x] = dark, true
	}
}

// bch is the remainder of value, at most 8 bits, times x^bits.
func bch(value, bits, code int) int {
	r := value << bits
	for i := 7; i >= 0; i-- {
		if r>>(bits+i)&1 == 1 {
			r ^= code << i
		}
	}
	return r
}

// format writes level and mask, twice.
func (c *Code) format(mask int) {
	data := formatL | mask
	bits := (data<<10 | bch(data, 10, formatCode)) ^ formatMask
	n := c.Size
	for i := range 15 {
		on := bits>>i&1 == 1
		switch { // beside the upper left finder, from below to the right
		case i < 6:
			c.keep(8, i, on)
		case i < 8:
			c.keep(8, i+1, on)
		case i == 8:
			c.keep(7, 8, on)
		default:
			c.keep(14-i, 8, on)
		}
		if i < 8 {
			c.keep(n-1-i, 8, on)
		} else {
			c.keep(8, n-15+i, on)
		}
	}
	c.keep(8, n-8, true)
}

// place writes codewords in columns of two from the right, up and down by turns.
func (c *Code) place(words []byte) {
	bit, up := 0, true
	for right := c.Size - 1; right > 0; right -= 2 {
		if right == timing {
			right--
		}
		for i := range c.Size {
			y := i
			if up {
				y = c.Size - 1 - i
			}
			for _, x := range [2]int{right, right - 1} {
				if at := y*c.Size + x; !c.kept[at] && bit < 8*len(words) {
					c.dark[at] = words[bit/8]>>(7-bit%8)&1 == 1
					bit++
				}
			}
		}
		up = !up
	}
}

// masked is the code under a mask, its number in place.
func (c *Code) masked(mask int) *Code {
	m := &Code{Size: c.Size, dark: make([]bool, len(c.dark)), kept: c.kept}
	copy(m.dark, c.dark)
	for y := range c.Size {
		for x := range c.Size {
			if at := y*c.Size + x; !c.kept[at] && turned(mask, x, y) {
				m.dark[at] = !m.dark[at]
			}
		}
	}
	m.format(mask)
	return m
}

// turned is Table 10.
func turned(mask, x, y int) bool {
	switch mask {
	case 0:
		return (x+y)%2 == 0
	case 1:
		return y%2 == 0
	case 2:
		return x%3 == 0
	case 3:
		return (x+y)%3 == 0
	case 4:
		return (x/3+y/2)%2 == 0
	case 5:
		return x*y%2+x*y%3 == 0
	case 6:
		return (x*y%2+x*y%3)%2 == 0
	}
	return ((x+y)%2+x*y%3)%2 == 0
}

// penalty is how hard a code is to read: long runs, squares, and how far from
// half of it is dark (§7.8.3, without what looks like a finder, which readers
// tell apart by where it is).
func (c *Code) penalty() (p int) {
	dark := 0
	for a := range c.Size {
		for _, at := range [2]func(b int) bool{func(b int) bool { return c.Dark(a, b) }, func(b int) bool { return c.Dark(b, a) }} {
			run := 1
			for b := 1; b <= c.Size; b++ {
				if b < c.Size && at(b) == at(b-1) {
					run++
					continue
				}
				if run >= 5 {
					p += run - 2
				}
				run = 1
			}
		}
		for b := range c.Size {
			if c.Dark(a, b) {
				dark++
			}
			d := c.Dark(a, b)
			if a > 0 && b > 0 && d == c.Dark(a-1, b) && d == c.Dark(a, b-1) && d == c.Dark(a-1, b-1) {
				p += 3
			}
		}
	}
	off := 100*dark/(c.Size*c.Size) - 50
	return p + max(off, -off)/5*10
}
