package main

import "syscall"

// childAttributes keep the daemon of the demo away from the terminal's Ctrl-C, which
// is for the demo alone: it stops the daemon itself, in good order. And if the demo
// is killed, the daemon goes with it.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
