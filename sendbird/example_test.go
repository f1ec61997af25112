package sendbird_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// example starts a fake and a client of it. In earnest it is
//
//	c, err := sendbird.New(sendbird.Config{AppID: "…", NotificationsToken: func() string { return "…" }})
func example() (*sendbirdtest.Server, *sendbird.Client, func()) {
	s, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{Token: "token"})
	if err != nil {
		panic(err)
	}
	c, err := sendbird.New(sendbird.Config{
		NotificationsURL:   s.URL(), // leave it empty, and set AppID
		NotificationsToken: func() string { return "token" },
		UploadHosts:        []string{strings.TrimPrefix(s.URL(), "http://")}, // leave it empty
	})
	if err != nil {
		panic(err)
	}
	return s, c, func() { c.Close(); s.Close() }
}

// One user, at once.
func ExampleClient_Send() {
	_, c, end := example()
	defer end()
	sent, err := c.Send(context.Background(), sendbird.Notification{
		Template: "appointment-reminder",
		Mode:     sendbird.Realtime,
		Targets:  []string{"user-1"},
		Variables: map[string]sendbird.Variables{"user-1": {
			"name":  sendbird.String("Bob Barker"),
			"photo": sendbird.Image{URL: "https://example.com/bob.png", Width: 64, Height: 64},
			"link":  sendbird.Action{Type: sendbird.ActionWeb, Data: "https://example.com/32893"},
		}},
		Title: "Appointment Reminder",
		Tag:   "appointments",
	})
	fmt.Println(sent.NotificationID, err)
	// Output: 7190607145580961921 <nil>
}

// What to do about an error is decided by what the call has done.
func ExampleOutcomeOf() {
	s, c, end := example()
	defer end()
	s.Script(sendbirdtest.Messages,
		sendbirdtest.Error(400, 400301, "no such user"),
		sendbirdtest.Error(500, 500901, "try later"),
		sendbirdtest.ResetAfterBody(),
	)
	for range 3 {
		_, err := c.Send(context.Background(), sendbird.Notification{Template: "sale", Mode: sendbird.Realtime, Targets: []string{"user-1"}})
		switch sendbird.OutcomeOf(err) {
		case sendbird.Refused:
			fmt.Println("give it up:", err)
		case sendbird.Later:
			fmt.Println("send it again later:", err)
		case sendbird.Unknown, sendbird.Partial:
			fmt.Println("ask a person: it may have arrived")
		}
	}
	// Output:
	// give it up: send notification: Sendbird answered 400, code 400301: no such user
	// send it again later: send notification: Sendbird answered 500, code 500901: Sendbird's own error, try later
	// ask a person: it may have arrived
}

// Up to 100,000 users: write a file, upload it, send to it.
func ExampleClient_Upload() {
	s, c, end := example()
	defer end()
	ctx := context.Background()

	var content bytes.Buffer // or a file on disk
	w, err := sendbird.NewCSV(&content, []string{"name", "city"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for _, row := range [][3]string{{"user-1", "Jay", "Paris, France"}, {"user-2", "Kim", "Seoul"}} {
		if err := w.Add(row[0], row[1:]...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
	}
	file, err := w.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}

	where, err := c.Presign(ctx, file.Key, true)
	if err == nil {
		err = c.Upload(ctx, where, bytes.NewReader(content.Bytes()), file.Bytes)
	}
	if err == nil {
		_, err = c.Send(ctx, sendbird.Notification{Template: "sale", Mode: sendbird.Batch, TargetsFile: where.FileKey})
	}
	fmt.Println(file.Users, s.Delivered("user-1"), s.Delivered("user-2"), err)
	// Output: 2 1 1 <nil>
}

func ExampleLimitError() {
	n := sendbird.Notification{Template: "sale", Mode: sendbird.Realtime, Targets: []string{"user-1", "user-2"}}
	fmt.Println(n.Check())
	// Output: targets: 2 users, but exactly 1 in realtime mode (https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification)
}
