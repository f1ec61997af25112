package clevertap_test

import (
	"context"
	"fmt"
	"os"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// A call of two records, of which CleverTap takes one.
func ExampleClient_Upload() {
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: "account", Passcode: "secret"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer fake.Close()

	c, err := clevertap.New(clevertap.Config{
		URL:       fake.URL(), // leave it empty, or take it from URLForRegion
		AccountID: "account",
		Passcode:  func() string { return "secret" },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer c.Close()

	result := c.Upload(context.Background(), [][]byte{
		[]byte(`{"type":"event","identity":"u1","ts":1468308340,"evtName":"Sale","evtData":{"status":"SENT","target_id":7}}`),
		[]byte(`{"type":"event","identity":"u2","ts":0,"evtName":"Sale","evtData":{"status":"SENT","target_id":7}}`),
	})
	fmt.Println(result.Kind)
	for _, r := range result.Refused {
		fmt.Printf("record %d: %d, %v\n", r.Index, r.Code, r.Code)
	}
	// Output:
	// accepted
	// record 1: 525, time not in epoch seconds
}
