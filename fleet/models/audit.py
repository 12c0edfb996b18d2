from django.db import models

from fleet.models.sites import Site
from fleet.querysets import ScopedQuerySet


class AuditEntry(models.Model):
    """One link of a chain per site. Written by ``fleet.audit.record`` alone; the database refuses UPDATE and DELETE."""

    SITE = "site"

    chain = models.CharField(max_length=40, help_text="The site's, or everywhere for what belongs to no site.")
    sequence = models.PositiveBigIntegerField()
    site = models.ForeignKey(Site, null=True, on_delete=models.PROTECT, related_name="audit_entries")
    at = models.DateTimeField()
    # Names, not foreign keys: an entry must outlive the person it speaks of, unchanged.
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=40)
    subject = models.CharField(max_length=200, help_text="The thing in words, as it was called then.")
    subject_type = models.CharField(max_length=60, blank=True, help_text="Its model, as in agents.HomeRestore.")
    subject_id = models.CharField(max_length=40, blank=True)
    subject_seal = models.CharField(max_length=64, blank=True, help_text="SHA-256 over a sealed row's content.")
    detail = models.JSONField(default=dict)
    previous = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64)

    objects = ScopedQuerySet["AuditEntry"].as_manager()

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name_plural = "audit entries"
        constraints = [
            models.UniqueConstraint(fields=["chain", "sequence"], name="audit_sequence_unique_in_chain"),
            models.UniqueConstraint(fields=["chain", "previous"], name="audit_chain_does_not_fork"),
        ]
        indexes = [models.Index(fields=["subject_type", "subject_id"], name="audit_subject")]

    def __str__(self) -> str:
        return f"{self.chain} #{self.sequence}: {self.action} {self.subject}"


class AuditHead(models.Model):
    """The end of each chain: the lock under which it grows, and what shows that its last links were not cut off."""

    chain = models.CharField(max_length=40, primary_key=True)
    sequence = models.PositiveBigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)

    def __str__(self) -> str:
        return f"{self.chain} ends at #{self.sequence}"


class AuditCheckpoint(models.Model):
    """The head of a chain as it was at some time, signed by the sender: who owns the database can make no other past of it.

    The signature is of ``fleet.checkpoints.checkpoint_bytes`` by the command key. Append-only, like the entries.
    """

    chain = models.CharField(max_length=40)
    sequence = models.PositiveBigIntegerField()
    digest = models.CharField(max_length=64)
    at = models.DateTimeField()
    key_id = models.CharField(max_length=40)
    signature = models.BinaryField()

    class Meta:
        ordering = ["-at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["chain", "sequence"], name="checkpoint_once_per_entry"),
        ]

    def __str__(self) -> str:
        return f"{self.chain} #{self.sequence}, signed"
