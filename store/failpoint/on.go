//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// variable has no prefix of birdtap's own: those are checked, and an unknown one is
// an error.
const variable = "FAILPOINT"

// order is what FAILPOINT asks for.
type order struct {
	at    Point
	do    func()
	which uint64 // the time that counts, from 1
}

var (
	given   = fromEnvironment()
	reached atomic.Uint64
	inTest  atomic.Pointer[order] // of a test in the same process
)

func fromEnvironment() order {
	text := os.Getenv(variable) //nolint:forbidigo // not in any binary that is shipped
	if text == "" {
		return order{}
	}
	o, err := parse(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s=%q: %v\n", variable, text, err)
		os.Exit(2)
	}
	return o
}

func parse(text string) (order, error) {
	name, action, _ := strings.Cut(text, "=")
	o := order{at: Point(name), which: 1}
	if !slices.Contains(Points(), o.at) {
		return order{}, fmt.Errorf("there is no such point; there are %v", Points())
	}
	action, count, counted := strings.Cut(action, "@")
	if counted {
		n, err := strconv.ParseUint(count, 10, 32)
		if err != nil || n == 0 {
			return order{}, fmt.Errorf("%q is no number of a time, from 1", count)
		}
		o.which = n
	}
	switch action {
	case "kill":
		o.do = kill
	case "block":
		o.do = func() { select {} }
	default:
		return order{}, fmt.Errorf("%q is neither kill nor block", action)
	}
	return o, nil
}

func kill() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // whoever came here does nothing more until the signal is there
}

// Here does what FAILPOINT asks for at this point.
func Here(at Point) {
	if o := inTest.Load(); o != nil && o.at == at {
		o.do()
	}
	if given.at != at || reached.Add(1) != given.which {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s reached\n", at)
	given.do()
}

// Do has f called at a point, by whoever gets there, until the function that it
// returns is called. It is for tests in the same process.
func Do(at Point, f func()) (stop func()) {
	inTest.Store(&order{at: at, do: f})
	return func() { inTest.Store(nil) }
}
