package gate

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Door is what `kagimori-gate status` shows of the gate itself. Times are UTC.
type Door struct {
	Deployment transport.Name `json:"deployment,omitempty"`
	Service    transport.Name `json:"service,omitempty"`
	// Open says whether a terminal with a sound credential would be admitted now.
	Open bool `json:"open"`
	// Problems says why not, or what will be the reason soon; Next what to do.
	Problems    []Trouble          `json:"problems"`
	Listen      string             `json:"listen"`
	Upstream    string             `json:"upstream"`
	Certificate *CertificateStatus `json:"certificate,omitempty"`
	Lists       []ListStatus       `json:"lists"`
	// Connections are those admitted and open now; Admitted all since the
	// start, Passed the requests passed on, Refused those that were not, by reason.
	Connections int              `json:"connections"`
	Admitted    int64            `json:"admitted"`
	Passed      int64            `json:"passed"`
	Refused     map[string]int64 `json:"refused"`
}

// A Trouble is something that keeps terminals out, or will.
type Trouble struct {
	Text string `json:"text"`
	Next string `json:"next"`
}

// CertificateStatus is the gate's own server certificate.
type CertificateStatus struct {
	Names   []string  `json:"names"`
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
}

// ListStatus is one list of revoked certificates.
type ListStatus struct {
	Issuer string `json:"issuer"`
	// Number of the list held, -1: none. Announced is what the server spoke of.
	Number    int64     `json:"number"`
	Announced int64     `json:"announced"`
	Revoked   int       `json:"revoked"`
	Issued    time.Time `json:"issued,omitzero"`
	Next      time.Time `json:"next_update,omitzero"`
	// AgeSeconds is how long ago the list was last confirmed; it serves until Until.
	AgeSeconds int64     `json:"age_seconds"`
	Until      time.Time `json:"serves_until,omitzero"`
	URL        string    `json:"url"`
	Problem    string    `json:"problem,omitempty"`
}

// certificateSoon is how long before its end status speaks of the gate's own certificate.
const certificateSoon = 24 * time.Hour

// Status says how the gate is.
func (g *Gate) Status() Door {
	now := g.now()
	s := Door{Open: true, Problems: []Trouble{}, Upstream: g.upstream.name, Refused: map[string]int64{}}
	if listen := g.listen.Load(); listen != nil {
		s.Listen = *listen
	}
	var refused map[Reason]int64
	s.Admitted, s.Passed, refused = g.counts.read()
	for reason, n := range refused {
		s.Refused[string(reason)] = n
	}
	s.Connections = len(g.sessions.admitted())
	place, err := g.source.Place()
	if err != nil {
		s.closed(control.AsProblem(err))
		return s
	}
	s.Deployment, s.Service = place.Deployment, place.Service
	g.certificateStatus(&s, now.judged)
	g.listStatus(&s, now)
	return s
}

func (s *Door) closed(p *control.Problem) {
	s.Open = false
	s.Problems = append(s.Problems, Trouble{p.Message, p.Next})
}

func (g *Gate) certificateStatus(s *Door, at time.Time) {
	c, err := g.source.Certificate()
	if err != nil {
		s.closed(control.AsProblem(err))
		return
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		s.closed(control.Problemf(control.Internal, "have the management server issue it anew", "the gate's own certificate cannot be read: %w", err))
		return
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	s.Certificate = &CertificateStatus{Names: names, Serial: leaf.SerialNumber.Text(16), Expires: leaf.NotAfter.UTC()}
	renew := fmt.Sprintf("have it issued anew: kagimori-server credential issue GATE --service %s", s.Service)
	switch left := leaf.NotAfter.Sub(at); {
	case left <= 0:
		s.closed(control.Problemf(control.Unavailable, renew, "the gate's own certificate has expired: terminals refuse it"))
	case left < certificateSoon:
		s.Problems = append(s.Problems, Trouble{fmt.Sprintf("the gate's own certificate expires in %s", left.Round(time.Minute)), renew})
	}
}

func (g *Gate) listStatus(s *Door, now moment) {
	lists, problem := g.crls.status(now)
	s.Lists = lists
	const next = "bring the link to the management server back, or let this machine fetch the list's url"
	usable := false
	for _, l := range lists {
		age := time.Duration(l.AgeSeconds) * time.Second
		switch {
		case l.Number < 0:
			s.Problems = append(s.Problems, Trouble{fmt.Sprintf("the list of revoked credentials of %s is announced and not here yet: %s", l.Issuer, l.Problem), next})
		case age > g.cfg.CRLMaxAge:
			s.Problems = append(s.Problems, Trouble{fmt.Sprintf("nobody has confirmed the list of revoked credentials of %s for %s, longer than crl_max_age (%s): its terminals are refused",
				l.Issuer, age, g.cfg.CRLMaxAge), next})
		default:
			usable = true
			if age > g.cfg.CRLMaxAge/2 || l.Problem != "" {
				s.Problems = append(s.Problems, Trouble{fmt.Sprintf("the list of revoked credentials of %s was last confirmed %s ago; it serves until %s. %s",
					l.Issuer, age, stamp(l.Until), l.Problem), next})
			}
		}
	}
	if problem != "" {
		s.Problems = append(s.Problems, Trouble{problem, "compare the versions of server and gate, and the deployment that the gate was provisioned for"})
	}
	if len(lists) == 0 {
		s.closed(control.Problemf(control.Unavailable, "connect the gate to the management server, which sends it at once",
			"no list of revoked credentials yet: nobody is admitted without one"))
	}
	s.Open = s.Open && usable
}

// status of all lists, and of the last message that fitted none.
func (s *crls) status(now moment) ([]ListStatus, string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := []ListStatus{}
	for _, h := range s.held {
		l := ListStatus{Issuer: h.issuer.Certificate.Subject.CommonName, Number: h.number(), Announced: h.announced, URL: h.url, Problem: h.problem}
		if h.list != nil {
			l.Revoked, l.Issued, l.Next = h.list.Len(), h.list.This.UTC(), h.list.Next.UTC()
			age := h.age(now)
			l.AgeSeconds, l.Until = int64(age/time.Second), now.judged.Add(s.maxAge-age).UTC().Truncate(time.Second)
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b ListStatus) int { return cmp.Compare(a.Issuer, b.Issuer) })
	return list, s.problem
}
