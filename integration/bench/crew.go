package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// crew is every process of the bench. All of them end with its context, and dismiss
// waits until they have.
type crew struct {
	ctx    context.Context
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

func newCrew(ctx context.Context) *crew {
	ctx, cancel := context.WithCancel(ctx)
	return &crew{ctx: ctx, cancel: cancel}
}

func (c *crew) dismiss() {
	c.cancel()
	c.ended.Wait()
}

// process is one member of the crew.
type process struct {
	cmd   *exec.Cmd
	words *lastWords
	ended chan struct{}
	err   error // read after ended
}

// launch starts cmd. It is killed when the crew is dismissed.
func (c *crew) launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, words: new(lastWords), ended: make(chan struct{})}
	cmd.Stderr = p.words
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.ended.Go(func() {
		p.err = cmd.Wait()
		close(p.ended)
	})
	return p, nil
}

// kill is kill -9, and waits for the end. It may be called twice.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.ended
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// died is why a process ended that should not have.
func (p *process) died() error {
	return fmt.Errorf("%s ended (%v): %s", p.cmd.Args[0], p.cmd.ProcessState, p.words)
}

// role starts this program in one of its roles.
func (c *crew) role(name string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(c.ctx, self, name)
	cmd.Env = []string{}
	return cmd, nil
}

// server starts a role that serves, and returns its address.
func (c *crew) server(name string) (address string, err error) {
	cmd, err := c.role(name)
	if err != nil {
		return "", err
	}
	// The role ends when this pipe does, which is kept open for as long as the bench lives.
	if _, err := cmd.StdinPipe(); err != nil {
		return "", err
	}
	// A pipe of our own: that of StdoutPipe may not be read beside Wait.
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := c.launch(cmd)
	_ = w.Close() // the child has its own end of it
	if err != nil {
		return "", err
	}
	address, err = bufio.NewReader(r).ReadString('\n')
	if err != nil {
		p.kill()
		return "", fmt.Errorf("%s does not listen: %w", name, errors.Join(err, p.died()))
	}
	return strings.TrimSpace(address), nil
}

// generate runs one load in a process of its own.
func (c *crew) generate(l load) (outcome, error) {
	var result outcome
	cmd, err := c.role(roleGenerate)
	if err != nil {
		return result, err
	}
	order, err := json.Marshal(l)
	if err != nil {
		return result, err
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(order), &out
	p, err := c.launch(cmd)
	if err != nil {
		return result, err
	}
	<-p.ended
	if p.err != nil {
		return result, p.died()
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		return result, fmt.Errorf("what the generator says: %w", err)
	}
	return result, nil
}

// untilOrphaned returns when the process that started this one closes our stdin, be
// it by its end.
func untilOrphaned() { _, _ = io.Copy(io.Discard, os.Stdin) }

// pause waits for d; false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lastWords keeps the end of what a process wrote.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

const lastWordsBytes = 4 << 10

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b...)
	w.text = w.text[max(0, len(w.text)-lastWordsBytes):]
	return len(b), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(string(w.text))
}
