//go:build failpoint

package failpoint

import "testing"

func TestOrdersAreUnderstood(t *testing.T) {
	for _, p := range Points() {
		o, err := parse(string(p) + "=kill@3")
		if err != nil || o.at != p || o.which != 3 || o.do == nil {
			t.Errorf("%s: got %+v, %v", p, o, err)
		}
		if o, err := parse(string(p) + "=block"); err != nil || o.which != 1 {
			t.Errorf("%s: got %+v, %v", p, o, err)
		}
	}
	for _, bad := range []string{"nowhere=kill", "relay-turn", "relay-turn=", "relay-turn=stop", "relay-turn=kill@0", "relay-turn=kill@x", "=kill"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestPointsHaveDifferentNames(t *testing.T) {
	seen := map[Point]bool{}
	for _, p := range Points() {
		if seen[p] {
			t.Errorf("%s twice", p)
		}
		seen[p] = true
	}
}

func TestTestSeesThePointItAskedFor(t *testing.T) {
	n := 0
	stop := Do(Stored, func() { n++ })
	Here(Stored)
	Here(Uploaded)
	stop()
	Here(Stored)
	if n != 1 {
		t.Errorf("called %d times, want once", n)
	}
}
