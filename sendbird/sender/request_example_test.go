package sender_test

import (
	"fmt"

	"github.com/birdtap/birdtap/sendbird/sender"
)

// A broadcast of CleverTap's for three users, one of whom has no Sendbird user id.
func ExampleParse() {
	request, err := sender.Parse(sender.ModeBatch, []byte(`{
		"targetId": 1234,
		"key_values": {"template_key": "welcome", "receiver": "SendbirdID", "var.name": "you"},
		"profiles": [
			{"identity": "u1", "profileData": {"SendbirdID": "sb-1"}, "key_values": {"var.name": "Jay"}},
			{"identity": "u2", "profileData": {"SendbirdID": "sb-2"}},
			{"identity": "u3", "profileData": {}}
		]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("accepted", request.Accepted)
	for _, ask := range request.Asks {
		for _, user := range ask.Users {
			fmt.Println(ask.Template, user.ID, user.Variables["name"])
		}
		for _, who := range ask.Unsendable {
			fmt.Println("not", who.User, who.Reason, who.Detail)
		}
	}

	_, err = sender.Parse(sender.ModeBatch, []byte(`{"key_values":{"template_key":"welcome","priority":"urgent"},"profiles":[]}`))
	fmt.Println(err)
	// Output:
	// accepted 2
	// welcome sb-1 Jay
	// welcome sb-2 you
	// not u3 no_receiver no field "SendbirdID"
	// priority: must be high, normal or low
}
