// Command fakesendbird is the fake Sendbird as a program, for tests whose birdtap runs in
// containers, and to play with.
//
//	/v1/…             what Sendbird's notification API does, and the upload host
//	GET /-/delivered  how often each user was reached, as JSON
//	GET /-/counts     the sums, as JSON
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

func main() {
	addr := flag.String("addr", ":8000", "where to listen")
	token := flag.String("token", "", "notifications token to be presented; empty: any")
	upload := flag.String("upload", "", "URL of this program as birdtap reaches it, such as http://sendbird:8000/; without it no file can be uploaded")
	flag.Parse()

	fake := sendbirdtest.New(sendbirdtest.Options{Token: *token, UploadURL: *upload})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/delivered", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.MarshalWrite(w, fake.Deliveries(), json.Deterministic(true)) // nobody is left to tell
	})
	mux.HandleFunc("GET /-/counts", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.MarshalWrite(w, fake.Counts())
	})
	mux.Handle("/", fake.Handler())
	s := &http.Server{Addr: *addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}
