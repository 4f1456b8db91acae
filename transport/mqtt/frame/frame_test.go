package frame

import (
	"errors"
	"slices"
	"testing"
)

func headers(t *testing.T, stream []byte, step int) (got []Header, err error) {
	t.Helper()
	f := New(func(h Header) error { got = append(got, h); return nil })
	for part := range slices.Chunk(stream, step) {
		if err = f.Pass(part); err != nil {
			return got, err
		}
	}
	return got, nil
}

func TestFilterSeesEveryHeader(t *testing.T) {
	stream := []byte{0x10, 0x02, 1, 2, 0xc0, 0x00, 0x33, 0xc8, 0x01}
	stream = append(append(stream, make([]byte, 200)...), 0xe0, 0x00)
	want := []Header{{Connect, 0, 2}, {Pingreq, 0, 0}, {Publish, 3, 200}, {Disconnect, 0, 0}}
	for _, step := range []int{1, 2, 3, 7, len(stream)} {
		got, err := headers(t, stream, step)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("in steps of %d: got %v, %v", step, got, err)
		}
	}
	if h := want[2]; h.QoS() != 1 || !h.Retain() {
		t.Errorf("flags of %v: QoS %d, retain %v", h, h.QoS(), h.Retain())
	}
}

func TestFilterStaysShut(t *testing.T) {
	refused := errors.New("refused")
	f := New(func(h Header) error {
		if h.Length > 127 {
			return refused
		}
		return nil
	})
	if err := f.Pass([]byte{0xc0, 0x00, 0x30, 0x80}); err != nil {
		t.Fatalf("a header that is not complete: %v", err)
	}
	if err := f.Pass([]byte{0x01, 0xc0, 0x00}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if err := f.Pass([]byte{0xc0, 0x00}); !errors.Is(err, refused) {
		t.Errorf("after a refusal: got %v", err)
	}
	if err := New(func(Header) error { return nil }).Pass([]byte{0x30, 0x80, 0x80, 0x80, 0x80}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a length of five bytes: got %v", err)
	}
}

// However a stream is cut, the filter sees the same packets.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{0x10, 0x02, 1, 2, 0xc0, 0x00}, uint8(1))
	f.Add([]byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, uint8(3))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		whole, wholeErr := headers(t, stream, max(1, len(stream)))
		cut, cutErr := headers(t, stream, int(step%16)+1)
		if !slices.Equal(whole, cut) || (wholeErr == nil) != (cutErr == nil) {
			t.Errorf("whole: %v, %v; cut: %v, %v", whole, wholeErr, cut, cutErr)
		}
	})
}
