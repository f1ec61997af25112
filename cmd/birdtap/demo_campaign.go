package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// launchCampaign is the campaign that is sent through birdtap in the demo: its users begin where
// no other traffic gets to.
var launchCampaign = campaign{"Autumn Launch", "445566"}

const (
	launchFirst   = 500_000
	launchBatch   = 300 // users of the campaign's broadcast
	launchJourney = 20  // users of a journey, each in a call of its own
	launchUsers   = launchBatch + launchJourney
	launchNobody  = 1 // a profile without a Sendbird user id
)

const (
	demoNotificationsToken = "demo-notifications-token"
	demoSenderToken        = "demo-sender-token" //nolint:gosec // the same
)

// campaignRuns is the whole loop: CleverTap asks for notifications, birdtap sends them,
// Sendbird delivers them and reports back, and birdtap takes the reports to CleverTap.
func (d *demo) campaignRuns(ctx context.Context) error {
	d.voice.step("7. A campaign, the whole way round",
		fmt.Sprintf("CleverTap runs the campaign %q and calls birdtap's webhook door: %d users in one", launchCampaign.event, launchBatch),
		fmt.Sprintf("broadcast, which it makes twice, %d more in calls of a journey, and a profile without a", launchJourney),
		"Sendbird user id. birdtap sends; Sendbird delivers, users read, and it posts SENT and READ back.")
	if err := d.webhooks(ctx); err != nil {
		return err
	}
	if err := d.until(ctx, sceneWait, "SENT and READ of the campaign reach CleverTap", func() bool {
		return d.ledger.arrivedOf(launchFirst, launchUsers) == 2*launchUsers
	}); err != nil {
		return err
	}
	var n campaignsJSON
	if err := d.until(ctx, sceneWait, "the campaign's figures are written", func() bool {
		out, err := d.birdtap.run(ctx, "status", "--campaign", launchCampaign.target, "--json")
		return err == nil && json.Unmarshal([]byte(out), &n) == nil && len(n.Campaigns) == 1 && n.Campaigns[0].ReadReceipts.Delivered >= launchUsers
	}); err != nil {
		return err
	}
	if err := d.addsUp(n); err != nil {
		return err
	}
	out, err := d.birdtap.run(ctx, "status", "--campaign", launchCampaign.target)
	if err != nil {
		return err
	}
	d.voice.tell("$ birdtap status --campaign " + launchCampaign.target)
	d.voice.tell(strings.Split(strings.TrimRight(out, "\n"), "\n")...)
	d.voice.tell(fmt.Sprintf("Sendbird reached %d users, each once; CleverTap has %d SENT and %d READ of them.", launchUsers, launchUsers, launchUsers))
	return nil
}

// addsUp compares birdtap's figures of the campaign with what both ends have seen.
func (d *demo) addsUp(n campaignsJSON) error {
	reached, twice := 0, 0
	for _, times := range d.notifications.Deliveries() {
		reached++
		if times > 1 {
			twice++
		}
	}
	c := n.Campaigns[0]
	if reached != launchUsers || twice > 0 || c.Sent != launchUsers || c.Refused != launchNobody || c.Held != 0 ||
		c.Asked != launchUsers+launchNobody || c.SentReceipts.Delivered != launchUsers || c.ReadReceipts.Delivered != launchUsers {
		return fmt.Errorf("the campaign does not add up: Sendbird reached %d users, %d of them more than once; birdtap says %+v", reached, twice, c)
	}
	return nil
}

// webhooks makes the calls that CleverTap makes.
func (d *demo) webhooks(ctx context.Context) error {
	keys := fmt.Sprintf(`{"template_key":"launch","event_name":"%s","receiver":"SendbirdID","var.name":"you"}`, launchCampaign.event)
	profile := func(i int) string {
		id := userPrefix + strconv.Itoa(launchFirst+i)
		return `{"identity":"` + id + `","profileData":{"SendbirdID":"` + id + `"}}`
	}
	var profiles []string
	for i := range launchBatch {
		profiles = append(profiles, profile(i))
	}
	profiles = append(profiles, `{"identity":"nobody"}`)
	body := fmt.Sprintf(`{"targetId":%s,"key_values":%s,"profiles":[%s]}`, launchCampaign.target, keys, strings.Join(profiles, ","))
	for range 2 {
		if err := d.webhook(ctx, "batch", body); err != nil {
			return err
		}
	}
	for i := launchBatch; i < launchUsers; i++ {
		body := fmt.Sprintf(`{"targetId":%s,"key_values":%s,"profiles":%s}`, launchCampaign.target, keys, profile(i))
		if err := d.webhook(ctx, "realtime", body); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) webhook(ctx context.Context, door, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.birdtap.doors+notificationDoors+"/"+door, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Api-Token", demoSenderToken)
	resp, err := d.sendbird.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the webhook door answered %d: %s", resp.StatusCode, bytes.TrimSpace(answer))
	}
	return err
}

// notified is what follows a notification: Sendbird reports for each user that it was
// SENT, and a little later that it was READ.
func (t *traffic) notified(ctx context.Context, n sendbirdtest.Notification) {
	for _, id := range n.Users {
		user, err := strconv.Atoi(strings.TrimPrefix(id, userPrefix))
		if err != nil {
			continue // somebody else's, with --keep
		}
		t.mu.Lock()
		if t.notifications == nil {
			t.notifications = map[int]string{}
		}
		t.notifications[user] = n.ID
		t.mu.Unlock()
		f := sentTo(user)
		t.ledger.posted(f)
		t.ended.Go(func() { t.deliver(ctx, f) })
	}
}

// body is what Sendbird posts about a fact. Every other signed report of the campaign says
// no more than which notification it was and who got it.
func (t *traffic) body(f fact) string {
	t.mu.Lock()
	id, found := t.notifications[f.user()]
	t.mu.Unlock()
	if !found || f.user()%8 != 3 {
		return f.record()
	}
	return fmt.Sprintf(`{"notification_id":"%s","user_id":"%s%d","evtData":{"status":"%s"}}`, id, userPrefix, f.user(), f.status())
}

// arrivedOf is how many facts of n users from first on CleverTap has.
func (l *ledger) arrivedOf(first, n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := 0
	for f := sentTo(first); f < sentTo(first+n) && int(f) < len(l.marks); f++ {
		if l.marks[f]&markSeen != 0 {
			found++
		}
	}
	return found
}
