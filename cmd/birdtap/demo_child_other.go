//go:build !linux

package main

import "syscall"

// childAttributes are none: without a signal at the parent's death the daemon of the
// demo had better hear the terminal's Ctrl-C itself.
func childAttributes() *syscall.SysProcAttr { return nil }
