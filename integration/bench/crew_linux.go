package main

import "syscall"

// attributes keep the terminal's Ctrl-C for the bench alone, which then ends all in
// order; and if the bench is killed, everything it started goes with it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
