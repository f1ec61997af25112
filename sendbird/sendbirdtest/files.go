package sendbirdtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// filesStay is how long a file is kept.
const filesStay = 30 * 24 * time.Hour

// File is an uploaded file.
type File struct {
	Key                   string
	Content               []byte
	UploadedAt, ExpiresAt time.Time
}

// File is an uploaded file that has not expired.
func (s *Server) File(key string) (File, bool) { return s.file(key) }

func (s *Server) file(key string) (File, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		if f.Key == key && s.opts.Now().Before(f.ExpiresAt) {
			return f, true
		}
	}
	return File{}, false
}

// permission is a presigned upload.
type permission struct {
	key     string
	fields  [][2]string // in the order of the answer
	expires time.Time
}

// presign answers as documented. Which code stands for a key that exists is a
// guess.
func (s *Server) presign(escaped string, body []byte) (response, bool) {
	key, err := url.PathUnescape(escaped)
	if err != nil || key == "" {
		return refusal(400111, `Invalid value: "file_key".`), false
	}
	var in struct {
		Overwrite bool `json:"overwrite_duplicate_key"`
	}
	if len(body) > 0 && json.Unmarshal(body, &in) != nil {
		return refusal(400403, "Invalid JSON request body."), false
	}
	if _, exists := s.file(key); exists && !in.Overwrite {
		return refusal(400202, `"File" already exists.`), false
	}
	p := s.permit(key)
	to := s.opts.UploadURL
	if to == "" {
		to = s.URL() + "/"
	}
	var fields bytes.Buffer
	for i, f := range p.fields {
		if i > 0 {
			fields.WriteByte(',')
		}
		fmt.Fprintf(&fields, "%s:%s", quote(f[0]), quote(f[1]))
	}
	return jsonResponse(http.StatusOK, fmt.Sprintf(`{"url":%s,"fields":{%s},"file_key":%s}`, quote(to), fields.String(), quote(key))), true
}

// permit makes a permission with the documented fields, in their order.
func (s *Server) permit(key string) permission {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	now := s.opts.Now().UTC()
	p := permission{key: key, expires: now.Add(s.opts.UploadTTL)}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", key, s.serial))
	signature := hex.EncodeToString(sum[:])
	p.fields = [][2]string{
		{"Expires", now.Add(filesStay).Format("2006-01-02T15:04:05.000000-07:00")},
		{"Content-Type", "text/csv"},
		{"key", "us-1/notification/AAAAAAAA-AAAA-AAAA-AAAA-AAAAAAAAAAAA/" + signature[:40]},
		{"x-amz-algorithm", "AWS4-HMAC-SHA256"},
		{"x-amz-credential", "FAKEFAKEFAKEFAKEFAKE/" + now.Format("20060102") + "/us-west-2/s3/aws4_request"},
		{"x-amz-date", now.Format("20060102T150405Z")},
		{"policy", "policy-" + signature[40:]},
		{"x-amz-signature", signature},
	}
	s.pending[signature] = p
	return p
}

// denied is an error as S3 writes it.
func denied(status int, code, message string) (response, bool) {
	return response{
		status: status,
		header: http.Header{"Content-Type": {"application/xml"}},
		body:   fmt.Appendf(nil, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>", code, message),
	}, false
}

// upload is the other host: S3's form upload, strict about what a lenient one
// would hide.
func (s *Server) upload(r *http.Request, body []byte) (response, bool) {
	if r.ContentLength < 0 {
		return denied(http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return denied(http.StatusPreconditionFailed, "PreconditionFailed", "Bucket POST must be of the enclosure-type multipart/form-data")
	}
	form, err := readForm(multipart.NewReader(bytes.NewReader(body), params["boundary"]))
	if err != nil {
		return denied(http.StatusBadRequest, "MalformedPOSTRequest", "The body of your POST request is not well-formed: "+err.Error())
	}
	return s.store(form)
}

// store holds a form against the permission that it claims to have.
func (s *Server) store(form *form) (response, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	signature := form.value("x-amz-signature")
	p, ok := s.pending[signature]
	now := s.opts.Now()
	switch {
	case !ok:
		return denied(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
	case !slices.Equal(form.fields, p.fields): // S3 would let them come in any order
		return denied(http.StatusForbidden, "AccessDenied", "Invalid according to Policy: Policy Condition failed")
	case now.After(p.expires):
		return denied(http.StatusForbidden, "AccessDenied", "Invalid according to Policy: Policy expired.")
	case form.fileType != "text/csv": // S3 would not mind
		return denied(http.StatusForbidden, "AccessDenied", "Invalid according to Policy: Content-Type")
	}
	delete(s.pending, signature) // "a pre-signed URL for every CSV file"; S3 would take a second
	s.files = slices.DeleteFunc(s.files, func(f File) bool { return f.Key == p.key })
	s.files = append(s.files, File{Key: p.key, Content: form.file, UploadedAt: now, ExpiresAt: now.Add(filesStay)})
	s.counts.Uploads++
	return response{status: http.StatusNoContent, header: http.Header{"Etag": {`"` + signature[:32] + `"`}}}, true
}

// form is an upload's parts: fields first, the file last.
type form struct {
	fields   [][2]string
	fileType string
	file     []byte
}

func (f *form) value(name string) string {
	for _, field := range f.fields {
		if field[0] == name {
			return field[1]
		}
	}
	return ""
}

var (
	errNoFile    = errors.New("no file")
	errAfterFile = errors.New("a part after the file")
	errForm      = errors.New("no multipart/form-data")
)

func readForm(r *multipart.Reader) (*form, error) {
	f := new(form)
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) && f.fileType != "" {
			return f, nil
		}
		if errors.Is(err, io.EOF) {
			return nil, errNoFile
		}
		if err != nil {
			return nil, errForm
		}
		if f.fileType != "" {
			return nil, errAfterFile
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, errForm
		}
		if part.FormName() == "file" {
			f.fileType, f.file = part.Header.Get("Content-Type"), content
			if f.fileType == "" {
				f.fileType = "none"
			}
			continue
		}
		f.fields = append(f.fields, [2]string{part.FormName(), string(content)})
	}
}

// listFiles answers as documented, newest last. The token is a place in the list.
func (s *Server) listFiles(query url.Values) (response, bool) {
	limit, from := 100, 0
	var err error
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 100 {
			return refusal(400111, `Invalid value: "limit".`), false
		}
	}
	if text := query.Get("token"); text != "" {
		if from, err = strconv.Atoi(text); err != nil || from < 0 {
			return refusal(400111, `Invalid value: "token".`), false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	body := []byte(`{"files":[`)
	end := min(from+limit, len(s.files))
	for i := from; i < end; i++ {
		if i > from {
			body = append(body, ',')
		}
		f := s.files[i]
		body = fmt.Appendf(body, `{"file_key":%s,"file_size":%d,"expires_at":%d,"uploaded_at":%d}`,
			quote(f.Key), len(f.Content), s.stamp(f.ExpiresAt), s.stamp(f.UploadedAt))
	}
	next := ""
	if end < len(s.files) {
		next = strconv.Itoa(end)
	}
	return jsonResponse(http.StatusOK, fmt.Sprintf(`%s],"next":"%s"}`, body, next)), true
}

func (s *Server) stamp(t time.Time) int64 {
	if s.opts.MillisInFiles {
		return t.UnixMilli()
	}
	return t.Unix()
}
