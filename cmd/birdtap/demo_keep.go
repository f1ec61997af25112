package main

import (
	"context"
	"fmt"
)

// keep goes on with traffic until Ctrl-C, and then waits for what is on its way.
func (d *demo) keep(ctx context.Context) error {
	d.voice.say(d.handles()...)
	d.voice = d.voice.again()
	lasting := context.WithoutCancel(ctx) // Ctrl-C ends the play, not the last deliveries
	d.sendbird.start(lasting)
	d.voice.start()
	select {
	case <-ctx.Done():
	case <-d.daemon.ended:
		d.sendbird.stop()
		d.voice.stop()
		return d.daemon.failed()
	}
	d.voice.say("", "Ctrl-C: Sendbird stops, and what is on its way is delivered. Once more ends at once.")
	err := d.trafficEnds(lasting)
	d.voice.stop()
	if err != nil {
		return err
	}
	return d.settle(lasting)
}

// again is a voice for a second act, which may last: fewer lines where they stay.
func (v *voice) again() *voice {
	next := newVoice(v.out, v.figures)
	next.began, next.every = v.began, keepEvery
	return next
}

// handles are what to play with, in lines to copy.
func (d *demo) handles() []string {
	b := d.birdtap
	return []string{
		"", "Traffic goes on until Ctrl-C. To play with, from another terminal:", "",
		"  # a receipt of your own; within two minutes a copy of it is delivered once only",
		fmt.Sprintf("  curl -i http://%s/1/upload \\", b.doors),
		fmt.Sprintf("    -H 'X-CleverTap-Account-Id: %s' -H 'X-CleverTap-Passcode: %s' \\", demoAccount, demoPasscode),
		fmt.Sprintf(`    -d '{"d":[{"identity":"me","evtName":"%s",`, firstCampaign.event),
		fmt.Sprintf(`          "evtData":{"status":"READ","target_id":%s}}]}'`, firstCampaign.target),
		"",
		fmt.Sprintf("  curl -s http://%s/readyz     # would a receipt sent now be stored?", b.window),
		fmt.Sprintf("  curl -s http://%s/healthz    # does it make progress?", b.window),
		fmt.Sprintf("  curl -s http://%s/metrics | grep ^birdtap_", b.window),
		"",
		"  # the commands work on the demo's queue when they know its directory",
		fmt.Sprintf("  export BIRDTAP_DATA_DIR=%s/data", b.dir),
		fmt.Sprintf("  %s status", b.program),
		"",
	}
}
