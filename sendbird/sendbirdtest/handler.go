package sendbirdtest

import (
	"io"
	"maps"
	"net/http"
	"strings"
)

// maxBody bounds what the fake reads of a call, in bytes. No limit of Sendbird's
// is known.
const maxBody = 256 << 20

// route finds the endpoint of a path, and what the path names. Paths are split
// before they are unescaped, so that a key with a slash stays one.
func route(r *http.Request) (at Endpoint, method, key string) {
	path := r.URL.EscapedPath()
	rest, isFile := strings.CutPrefix(path, "/v1/storage/targets_files")
	switch {
	case path == "/v1/notifications/messages":
		return Messages, http.MethodPost, ""
	case isFile && rest == "":
		return Files, http.MethodGet, ""
	case isFile && strings.HasPrefix(rest, "/") && strings.HasSuffix(rest, "/presigned_urls"):
		return Presign, http.MethodPost, strings.TrimSuffix(rest[1:], "/presigned_urls")
	case path == "/v1/templates":
		return Templates, http.MethodGet, ""
	case strings.HasPrefix(path, "/v1/templates/"):
		return Templates, http.MethodGet, strings.TrimPrefix(path, "/v1/templates/")
	case path == "/":
		return Upload, http.MethodPost, ""
	}
	for _, known := range actionRoutes {
		key, ok := matchPath(known.path, path)
		if ok && (at == "" || known.method == r.Method) {
			at, method = known.at, known.method
			if method == r.Method {
				return at, method, key
			}
		}
	}
	return at, method, ""
}

// matchPath holds a path against a pattern, and gives the segments that "*" stands
// for, as they are escaped, with slashes between.
func matchPath(pattern, path string) (key string, ok bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return "", false
	}
	var keys []string
	for i, segment := range want {
		switch {
		case segment == "*" && got[i] != "":
			keys = append(keys, got[i])
		case segment != got[i]:
			return "", false
		}
	}
	return strings.Join(keys, "/"), true
}

// Handler serves the fake: the API and the upload host.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, method, key := route(r)
		switch {
		case at == "": // a guess
			w.WriteHeader(http.StatusNotFound)
		case r.Method != method: // a guess
			w.WriteHeader(http.StatusMethodNotAllowed)
		default:
			s.serve(w, r, at, key)
		}
	})
}

// serve is the way of one call.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, at Endpoint, key string) {
	p := s.arrive(at, r)
	e := &exchange{w: w, r: r, released: p.released}
	if p.does.beforeBody {
		s.log(p.call)
		p.does.deliver(e)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		s.log(p.call)
		e.abort()
	}
	p.call.Body = body
	e.response = s.decide(&p, r, key)
	maps.Copy(e.response.header, p.limits)
	if !e.sleep(p.does.delay) {
		e.abort()
	}
	if p.does.deliver == nil {
		e.write()
		return
	}
	p.does.deliver(e)
}

// decide settles what is carried out, logs it, and returns the answer. One call is
// decided at a time.
func (s *Server) decide(p *passage, r *http.Request, key string) response {
	s.order.Lock()
	defer s.order.Unlock()
	var answer response
	switch {
	case p.tooMany:
		answer = jsonResponse(http.StatusTooManyRequests, errorBody(500910, "Too many requests."))
	case p.does.notTaking:
		answer = jsonResponse(http.StatusOK, "{}")
	default:
		answer, p.call.Done = s.carryOut(p.call.Endpoint, r, key, p.call.Body)
	}
	if fixed := p.does.fixed; fixed != nil {
		answer = *fixed
		answer.header = fixed.header.Clone() // each call may change its own
	}
	if !p.does.silent {
		p.call.Status = answer.status
	}
	s.log(p.call)
	return answer
}

// carryOut does what the call asks for; false if it was refused.
func (s *Server) carryOut(at Endpoint, r *http.Request, key string, body []byte) (response, bool) {
	if at == Upload {
		return s.upload(r, body)
	}
	if answer, ok := s.authorize(at, r.Header); !ok {
		return answer, false
	}
	if at.isChat() || at.isDesk() {
		return s.action(at, r, key, body)
	}
	if r.Method == http.MethodPost && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return refusal(400403, "Invalid JSON request body."), false // a guess
	}
	switch at {
	case Messages:
		return s.message(body)
	case Presign:
		return s.presign(key, body)
	case Files:
		return s.listFiles(r.URL.Query())
	default:
		return s.listTemplates(key)
	}
}
