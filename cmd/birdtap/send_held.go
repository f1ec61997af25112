package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// onSends lets a command look at the sender's part of a queue that is there.
func (p *program) onSends(ctx context.Context, do func(*store.Sends) error) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	return withSends(ctx, cfg, newLogger(p.err, zap.ErrorLevel.String(), "console"), false, do)
}

// heldLine is one held call as programs read it.
type heldLine struct {
	ID       string      `json:"id"`
	Since    time.Time   `json:"since"`
	Mode     sender.Mode `json:"mode"`
	Users    int         `json:"users"`
	Template string      `json:"template"`
	Event    string      `json:"event,omitempty"`
	TargetID string      `json:"target_id,omitempty"`
	Why      string      `json:"why"`
}

func (p *program) listHeld(ctx context.Context, asJSON bool) error {
	return p.onSends(ctx, func(sends *store.Sends) error {
		held, err := sender.ListHeld(ctx, sends)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
		for i, h := range held {
			l := heldLine{h.ID, h.Since, h.Mode, h.Users, h.Message.Template, h.Message.Event, h.Message.Target, h.Why}
			if asJSON {
				if err := writeJSONLine(p.out, l); err != nil {
					return err
				}
				continue
			}
			if i == 0 {
				fmt.Fprintln(table, "ID\tSINCE\tMODE\tUSERS\tTEMPLATE\tEVENT\tTARGET\tWHY")
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(l.ID), timeText(l.Since), l.Mode, thousands(uint64(max(0, l.Users))),
				cell(l.Template), orDash(cell(l.Event)), orDash(cell(l.TargetID)), printable(l.Why))
		}
		if err := table.Flush(); err != nil || asJSON {
			return err
		}
		fmt.Fprintf(p.err, "%s\n", counted(len(held), "held call"))
		return nil
	})
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// decideHeld has a held call sent again, or given up.
func (p *program) decideHeld(ctx context.Context, f *sendFlags) error {
	id, release := f.release+f.drop, f.release != ""
	cfg, err := p.config()
	if err != nil {
		return err
	}
	words := zapcore.Lock(zapcore.AddSync(p.err))
	log := newLogger(words, zap.ErrorLevel.String(), "console")
	return withSends(ctx, cfg, log, false, func(sends *store.Sends) error {
		held, err := findHeld(ctx, sends, id)
		if err != nil {
			return err
		}
		if release && !f.yes && isTerminal(p.in) && !p.confirm(fmt.Sprintf("send call %s to %s again? Whoever got the first gets it twice", printable(id), counted(held.Users, "user"))) {
			return errors.New("nothing was released")
		}
		if err := sender.Decide(ctx, sends, id, release); err != nil {
			return err
		}
		switch {
		case sends.Alive(ctx, aliveWait):
			_, err = fmt.Fprintf(p.out, "call %s: decided; the active sender carries it out\n", id)
			return err
		case cfg.needSendbird() != nil:
			_, err = fmt.Fprintf(p.out, "call %s: decided; the next sender carries it out, for there is none, and this command has no credentials of Sendbird\n", id)
			return err
		case !sends.MayCheckpoint(ctx):
			_, err = fmt.Fprintf(p.out, "call %s: decided; the next sender carries it out, for there is none, and this user of NATS may not be one\n", id)
			return err
		}
		return p.withSendbird(func(client *sendbird.Client) error {
			return p.carryDecision(ctx, sends, newSender(cfg, sends, client, log), held, release)
		})
	})
}

// aliveWait is how long the active sender may take to say that it is there.
const aliveWait = time.Second

// errNotHeld names what to do.
func errNotHeld(id string) error {
	return fmt.Errorf("there is no held call %q; birdtap send --held lists them", printable(id))
}

func findHeld(ctx context.Context, sends *store.Sends, id string) (sender.Held, error) {
	all, err := sender.ListHeld(ctx, sends)
	if err != nil {
		return sender.Held{}, err
	}
	for _, h := range all {
		if h.ID == id {
			return h, nil
		}
	}
	return sender.Held{}, errNotHeld(id)
}

// carryDecision runs a sender until a decision is carried out.
func (p *program) carryDecision(ctx context.Context, sends *store.Sends, s *sender.Sender, held sender.Held, release bool) error {
	err := alongside(ctx, s, func(ctx context.Context) error {
		for {
			if waits, err := sender.Ordered(ctx, sends, held.ID); err != nil || !waits {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(jobEvery):
			}
		}
	})
	if ctx.Err() != nil {
		return fmt.Errorf("call %s: the decision is on disk, and the next sender carries it out", held.ID)
	}
	if err != nil {
		return err
	}
	switch _, err := findHeld(ctx, sends, held.ID); {
	case err == nil:
		return fmt.Errorf("call %s went out, and its outcome is unknown once more: it is still held", held.ID)
	case release:
		_, err = fmt.Fprintf(p.out, "call %s went out again to %s; birdtap send --unsent tells who was refused, if anybody\n", held.ID, counted(held.Users, "user"))
		return err
	}
	_, err = fmt.Fprintf(p.out, "call %s to %s is given up\n", held.ID, counted(held.Users, "user"))
	return err
}

// unsentLine is a user who was not sent to, as programs read it.
type unsentLine struct {
	Time     time.Time     `json:"time"`
	Mode     sender.Mode   `json:"mode,omitempty"`
	Template string        `json:"template,omitempty"`
	Event    string        `json:"event,omitempty"`
	TargetID string        `json:"target_id,omitempty"`
	Reason   sender.Reason `json:"reason"`
	User     string        `json:"user,omitempty"`
	Detail   string        `json:"detail,omitempty"`
	Raw      []byte        `json:"raw,omitempty"` // of what does not decode, base64
}

// listUnsent lists who was not sent to, as far back as the list goes.
func (p *program) listUnsent(ctx context.Context, asJSON bool) error {
	return p.onSends(ctx, func(sends *store.Sends) error {
		out := bufio.NewWriter(p.out)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		n := 0
		put := func(l unsentLine) error {
			n++
			if asJSON {
				return writeJSONLine(out, l)
			}
			if n == 1 {
				fmt.Fprintln(table, "TIME\tREASON\tUSER\tMODE\tTEMPLATE\tEVENT\tTARGET\tDETAIL")
			}
			if n%tableRows == 0 {
				if err := table.Flush(); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", timeText(l.Time), printable(string(l.Reason)), orDash(printable(l.User)),
				orDash(string(l.Mode)), orDash(cell(l.Template)), orDash(cell(l.Event)), orDash(cell(l.TargetID)), printable(l.Detail))
			return err
		}
		err := sends.Unsent(ctx, func(data []byte) error {
			var e sender.UnsentEntry
			if err := json.Unmarshal(data, &e); err != nil {
				return put(unsentLine{Reason: sender.ReasonCorrupt, Detail: "this entry of the list cannot be read", Raw: data})
			}
			return eachUnsent(&e, put)
		})
		if err := errors.Join(err, table.Flush(), out.Flush()); err != nil || asJSON {
			return err
		}
		fmt.Fprintf(p.err, "%s\n", counted(n, "user"))
		return nil
	})
}

// eachUnsent takes an entry apart.
func eachUnsent(e *sender.UnsentEntry, fn func(unsentLine) error) error {
	line := unsentLine{Time: e.Time.UTC().Truncate(time.Second), Mode: e.Mode, Template: e.Template, Event: e.Event, TargetID: e.Target, Reason: e.Reason}
	if e.Raw != nil {
		line.Raw, line.Detail = e.Raw, "who it was cannot be read"
		return fn(line)
	}
	for _, user := range e.Users {
		line.User = user
		if err := fn(line); err != nil {
			return err
		}
	}
	for _, u := range e.Each {
		line.User, line.Reason, line.Detail = u.User, u.Reason, u.Detail
		if err := fn(line); err != nil {
			return err
		}
	}
	return nil
}
