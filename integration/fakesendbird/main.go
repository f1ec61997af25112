// Command fakesendbird is the fake Sendbird as a program, for tests whose birdtap runs in
// containers, and to play with.
//
//	/v1/…                  what Sendbird's notification API does, and the upload host
//	GET /-/delivered       how often each user was reached, as JSON
//	GET /-/counts          the sums, as JSON
//	GET /-/calls?since=N   when calls that send came since then, by host name; in ns since 1970
//
// A destination may have several names in the network: calls are told apart by the host
// name that the caller used, so that the test sees which sender it was.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// unknownUser is Sendbird's code for a user that it does not know.
const unknownUser = 400201

func main() {
	addr := flag.String("addr", ":8000", "where to listen")
	token := flag.String("token", "", "notifications token to be presented; empty: any")
	upload := flag.String("upload", "", "URL of this program as birdtap reaches it, such as http://sendbird:8000/; without it no file can be uploaded")
	template := flag.String("template", "", "a template, as the API returns it")
	latency := flag.Duration("latency", 0, "of every answer to a call that sends, which is carried out before")
	refuse := flag.String("refuse", "", "calls are refused of which a user's id begins with this; empty: none")
	flag.Parse()

	fake := sendbirdtest.New(sendbirdtest.Options{Token: *token, UploadURL: *upload})
	if *template != "" {
		if err := fake.AddTemplate(*template); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	fake.Always(sendbirdtest.Messages, sendbirdtest.Delay(*latency))
	fake.Judge(func(n sendbirdtest.Notification) int {
		if *refuse != "" && slices.ContainsFunc(n.Users, func(id string) bool { return strings.HasPrefix(id, *refuse) }) {
			return unknownUser
		}
		return 0
	})
	s := &http.Server{Addr: *addr, Handler: handler(fake), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}

func handler(fake *sendbirdtest.Server) http.Handler {
	calls := arrivals{byHost: map[string][]int64{}}
	api := fake.Handler()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/delivered", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.MarshalWrite(w, fake.Deliveries(), json.Deterministic(true)) // nobody is left to tell
	})
	mux.HandleFunc("GET /-/counts", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.MarshalWrite(w, fake.Counts())
	})
	mux.HandleFunc("GET /-/calls", calls.since)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			calls.add(r.Host)
		}
		api.ServeHTTP(w, r)
	})
	return mux
}

// arrivals are the instants of calls, by host name.
type arrivals struct {
	mu     sync.Mutex
	byHost map[string][]int64
}

func (a *arrivals) add(host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byHost[host] = append(a.byHost[host], time.Now().UnixNano())
}

func (a *arrivals) since(w http.ResponseWriter, r *http.Request) {
	since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	list := map[string][]int64{}
	a.mu.Lock()
	for host, calls := range a.byHost {
		if first, _ := slices.BinarySearch(calls, since); first < len(calls) {
			list[host] = slices.Clone(calls[first:])
		}
	}
	a.mu.Unlock()
	_ = json.MarshalWrite(w, list)
}
