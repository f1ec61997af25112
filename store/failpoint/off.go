//go:build !failpoint

package failpoint

// Here does nothing: it is compiled to nothing.
func Here(Point) {}
