//go:build !linux

package main

import "syscall"

// attributes are none: the terminal's Ctrl-C then reaches all processes alike.
func attributes() *syscall.SysProcAttr { return nil }
