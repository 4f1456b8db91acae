package qr

import (
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// read has a real decoder look at a picture, given as lines of light (true) and dark.
func read(t *testing.T, w, h int, light func(x, y int) bool) string {
	t.Helper()
	const pixels = 4
	m := image.NewGray(image.Rect(0, 0, w*pixels, h*pixels))
	for y := range h * pixels {
		for x := range w * pixels {
			if light(x/pixels, y/pixels) {
				m.SetGray(x, y, color.Gray{255})
			}
		}
	}
	path := filepath.Join(t.TempDir(), "code.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(png.Encode(f, m), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", path).Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("zbarimg is missing: run scripts/setup.sh")
	}
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(string(out), "\n")
}

// Every version, at its shortest and longest text, is read by a camera's decoder.
func TestARealDecoderReadsIt(t *testing.T) {
	alphabet := "kagimori-keycopy:?a=192.0.2.10:8885&a=[2001:db8::7]:8885&k=qL8R4QIcQ_ZsRqOAbeRfcZhilN_MksRtDaErMA-1xyz~"
	from := 1
	for _, v := range versions {
		for _, n := range []int{from, v.text()} {
			text := strings.Repeat(alphabet, 3)[n%7 : n%7+n]
			c, err := Encode(text)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, c.Size+2*quiet, c.Size+2*quiet, func(x, y int) bool { return !c.Dark(x-quiet, y-quiet) }); got != text {
				t.Errorf("%d bytes, %d modules: read %q, want %q", n, c.Size, got, text)
			}
		}
		from = v.text() + 1
	}
	if from != MaxText+1 {
		t.Errorf("%d bytes fit, MaxText says %d", from-1, MaxText)
	}
	for _, text := range []string{"", strings.Repeat("x", MaxText+1)} {
		if _, err := Encode(text); !errors.Is(err, ErrTooLong) {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
}

// The same, off a terminal: a dark one shows light blocks.
func TestATerminalShowsIt(t *testing.T) {
	const text = "kagimori-keycopy:?a=192.0.2.10:8885&k=qL8R4QIcQ_ZsRqOAbeRfcZhilN_MksRtDaErMA-1xyz"
	c, err := Encode(text)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(Blocks(c.Rows()), "\n"), "\n")
	if len(lines) != Height(c.Size) || len(lines) > 24 {
		t.Errorf("%d lines, Height says %d", len(lines), Height(c.Size))
	}
	for _, l := range lines {
		if n := utf8.RuneCountInString(l); n != Width(c.Size) {
			t.Fatalf("%d columns, Width says %d", n, Width(c.Size))
		}
	}
	got := read(t, Width(c.Size), 2*len(lines), func(x, y int) bool {
		switch []rune(lines[y/2])[x] {
		case '█':
			return true
		case '▀':
			return y%2 == 0
		case '▄':
			return y%2 == 1
		}
		return false
	})
	if got != text {
		t.Errorf("read %q", got)
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("x")
	f.Add(strings.Repeat("\xff", MaxText))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Encode(text)
		if (err == nil) != (text != "" && len(text) <= MaxText) {
			t.Fatal(len(text), err)
		}
		if err == nil && len(c.Rows()) != c.Size {
			t.Error("rows")
		}
	})
}
