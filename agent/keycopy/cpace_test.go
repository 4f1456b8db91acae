package keycopy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/gtank/ristretto255"

	"github.com/kagimori/kagimori/transport"
)

// unhex reads the vectors' upper-case hexadecimal.
type unhex []byte

func (h *unhex) UnmarshalText(text []byte) error {
	*h = make([]byte, hex.DecodedLen(len(text)))
	_, err := hex.Decode(*h, text)
	return err
}

// cpaceVectors are those of draft-irtf-cfrg-cpace-21 for this suite.
type cpaceVectors struct {
	Source string `json:"source"`
	Group  struct {
		PRS, CI      unhex
		SID          unhex `json:"sid"`
		G            unhex `json:"g"`
		ScalarA      unhex `json:"ya"`
		ADa          unhex
		ShareA       unhex `json:"Ya"`
		ScalarB      unhex `json:"yb"`
		ADb          unhex
		ShareB       unhex `json:"Yb"`
		K            unhex
		ISK          unhex `json:"ISK_IR"`
		ISKSymmetric unhex `json:"ISK_SY"`
		SidIR        unhex `json:"sid_output_ir"`
		SidOC        unhex `json:"sid_output_oc"`
	} `json:"group"`
	Points struct {
		Valid    map[string]unhex
		InvalidY unhex `json:"Invalid Y1"`
		Identity unhex `json:"Invalid Y2"`
	} `json:"points"`
}

// readVectors decodes with exact key names: encoding/json would take Ya for ya.
func readVectors(t *testing.T) (v cpaceVectors) {
	t.Helper()
	data, err := os.ReadFile("testdata/cpace-ristr255-sha512.json")
	if err != nil {
		t.Fatal(err)
	}
	var raw struct {
		Source string                     `json:"source"`
		Group  map[string]unhex           `json:"group"`
		Points map[string]json.RawMessage `json:"points"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		t.Fatal(err)
	}
	v.Source = raw.Source
	group := reflect.ValueOf(&v.Group).Elem()
	if len(raw.Group) != group.NumField() || len(raw.Points) != 3 {
		t.Fatalf("%d vectors and %d points, want %d and 3", len(raw.Group), len(raw.Points), group.NumField())
	}
	for i := range group.NumField() {
		name := group.Type().Field(i).Tag.Get("json")
		if name == "" {
			name = group.Type().Field(i).Name
		}
		b, ok := raw.Group[name]
		if !ok || len(b) == 0 {
			t.Fatalf("vector %s is missing", name)
		}
		group.Field(i).Set(reflect.ValueOf(b))
	}
	for name, to := range map[string]any{"Valid": &v.Points.Valid, "Invalid Y1": &v.Points.InvalidY, "Invalid Y2": &v.Points.Identity} {
		if err := json.Unmarshal(raw.Points[name], to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if len(v.Points.Valid) != 4 {
		t.Fatalf("%d values of the valid point, want 4", len(v.Points.Valid))
	}
	return v
}

func scalar(t *testing.T, b []byte) *ristretto255.Scalar {
	t.Helper()
	s, err := ristretto255.NewScalar().SetCanonicalBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCPaceVectors(t *testing.T) {
	v := readVectors(t)
	g := &v.Group
	if got := cpaceGenerator(g.PRS, g.CI, g.SID).Bytes(); !bytes.Equal(got, g.G) {
		t.Errorf("generator %x, want %x", got, g.G)
	}
	a, b := newCPace(scalar(t, g.ScalarA), g.PRS, g.CI, g.SID), newCPace(scalar(t, g.ScalarB), g.PRS, g.CI, g.SID)
	if !bytes.Equal(a.share[:], g.ShareA) || !bytes.Equal(b.share[:], g.ShareB) {
		t.Errorf("shares %x, %x", a.share, b.share)
	}
	for _, side := range []struct {
		scalar, share []byte
	}{{g.ScalarA, g.ShareB}, {g.ScalarB, g.ShareA}} {
		if k, err := scalarMultVfy(scalar(t, side.scalar), side.share); err != nil || !bytes.Equal(k, g.K) {
			t.Errorf("K %x, %v", k, err)
		}
	}
	shareA, shareB := a.share, b.share
	if isk, err := a.initiate(g.ADa, shareB, g.ADb); err != nil || !bytes.Equal(isk, g.ISK) {
		t.Errorf("initiator: ISK %x, %v", isk, err)
	}
	if isk, err := b.respond(shareA, g.ADa, g.ADb); err != nil || !bytes.Equal(isk, g.ISK) {
		t.Errorf("responder: ISK %x, %v", isk, err)
	}
	if bytes.Equal(g.ISK, g.ISKSymmetric) {
		t.Error("the vectors do not tell the two settings apart")
	}
}

func TestCPacePoints(t *testing.T) {
	p := readVectors(t).Points
	s := scalar(t, p.Valid["s"])
	if got, err := scalarMultVfy(s, p.Valid["X"]); err != nil || !bytes.Equal(got, p.Valid["G.scalar_mult_vfy(s,X)"]) {
		t.Errorf("valid point: %x, %v", got, err)
	}
	for name, y := range map[string][]byte{"invalid Y1": p.InvalidY, "invalid Y2 (identity)": p.Identity, "short": p.Identity[:31], "empty": nil} {
		if _, err := scalarMultVfy(s, y); !errors.Is(err, errPoint) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCPaceStateServesOnce(t *testing.T) {
	draw := bytes.NewReader(bytes.Repeat([]byte{7}, 128))
	a, err := startCPace(draw, []byte("code"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := startCPace(draw, []byte("code"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	y := a.y
	if _, err := a.initiate(nil, b.share, nil); err != nil {
		t.Fatal(err)
	}
	if y.Equal(ristretto255.NewScalar()) != 1 {
		t.Error("the scalar is not wiped")
	}
	if _, err := a.initiate(nil, b.share, nil); !errors.Is(err, errSpent) {
		t.Errorf("second finish: %v", err)
	}
	y = b.y
	if _, err := b.respond(transport.KeycopyPoint{}, nil, nil); !errors.Is(err, errPoint) {
		t.Errorf("identity: %v", err)
	}
	if _, err := b.respond(a.share, nil, nil); !errors.Is(err, errSpent) || y.Equal(ristretto255.NewScalar()) != 1 {
		t.Errorf("a failed finish leaves the state usable: %v", err)
	}
	if _, err := startCPace(bytes.NewReader(nil), nil, nil, nil); err == nil {
		t.Error("no randomness, and no error")
	}
}

// Each input of CPace changes the result.
func TestCPaceBindsEverything(t *testing.T) {
	random := bytes.Repeat([]byte{9}, 64)
	run := func(prs, ci, sid, ada, adb string) []byte {
		a, err := startCPace(bytes.NewReader(random), []byte("prs"), []byte("ci"), []byte("sid"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := startCPace(bytes.NewReader(random), []byte(prs), []byte(ci), []byte(sid))
		if err != nil {
			t.Fatal(err)
		}
		share := b.share
		if _, err := b.respond(a.share, []byte(ada), []byte(adb)); err != nil {
			t.Fatal(err)
		}
		isk, err := a.initiate([]byte("ada"), share, []byte(adb))
		if err != nil {
			t.Fatal(err)
		}
		return isk
	}
	want := run("prs", "ci", "sid", "ada", "adb")
	for _, other := range [][]byte{run("prS", "ci", "sid", "ada", "adb"), run("prs", "cI", "sid", "ada", "adb"),
		run("prs", "ci", "siD", "ada", "adb"), run("prs", "ci", "sid", "ada", "adB")} {
		if bytes.Equal(want, other) {
			t.Error("an input does not matter")
		}
	}
}

func TestLVCat(t *testing.T) {
	got := lvCat([]byte("ab"), nil, make([]byte, 127), make([]byte, 128), make([]byte, 300))
	want := append([]byte{2, 'a', 'b', 0, 127}, make([]byte, 127)...)
	want = append(append(want, 0x80, 1), make([]byte, 128)...)
	want = append(append(want, 0xac, 2), make([]byte, 300)...)
	if !bytes.Equal(got, want) {
		t.Errorf("%x", got)
	}
}
