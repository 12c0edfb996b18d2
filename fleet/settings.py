"""Settings, read from the environment (see .env.example) and refused when they make no sense."""

import secrets
from pathlib import Path
from typing import Any

from celery.schedules import crontab

from fleet.env import Env

BASE_DIR = Path(__file__).resolve().parent.parent
env = Env.load(BASE_DIR / ".env")

# --- where things are -----------------------------------------------------------------------------------------------
DATA = env.path("FLEET_DATA", BASE_DIR / "var")
STORE = env.path("FLEET_STORE", DATA / "store")
UPLOADS = DATA / "uploads"  # archives of homes until a worker has packed them
BUILD_WORK = env.path("FLEET_BUILD_WORK", DATA / "build")
CHECK_KVM = env.flag("FLEET_CHECK_KVM", True)  # False where a guest stalls with KVM: checks then need not find out
DAEMON = BASE_DIR / "agents" / "daemon"  # put into every initrd; named as a path so that images never imports agents
PUBLIC_KEYS = env.path("FLEET_PUBLIC_KEYS", DATA / "keys")
# The path of a private key is given only to the process that needs it: the sender, and the gateway.
COMMAND_KEY = env.text("FLEET_COMMAND_KEY", "")
SESSION_KEY = env.text("FLEET_SESSION_KEY", "")
IMAGE_KEY = env.text("FLEET_IMAGE_KEY", "")

# --- what the store keeps -------------------------------------------------------------------------------------------
RELEASES_KEPT = env.number("FLEET_RELEASES_KEPT", 3, low=1, high=100)  # versions before its present one, per class
STORE_GRACE = env.number("FLEET_STORE_GRACE", 24, low=1, high=8760)  # hours for which nothing young is collected
SITE_STORAGE = env.number("FLEET_SITE_STORAGE", 0, low=0, high=10**9)  # MiB the images of a site may take; 0: no limit
VOLATILE_MIB = env.number(
    "FLEET_VOLATILE_MIB", 256, low=1, high=65536
)  # that the volatile rules of an image may copy in all
STORAGE_HARD = env.number(
    "FLEET_STORAGE_HARD", 120, low=100, high=1000
)  # percent of that limit beyond which no build starts

# --- how it is reached ----------------------------------------------------------------------------------------------
DEBUG = env.flag("FLEET_DEBUG", False)
# Without a configured key every process start has its own: right for tests and one-off commands, refused by
# `check --deploy` (fleet.E001) for a server, whose logins would end at every restart.
SECRET_KEY_CONFIGURED = bool(env.text("FLEET_SECRET_KEY", ""))
SECRET_KEY = env.secret("FLEET_SECRET_KEY") if SECRET_KEY_CONFIGURED else secrets.token_urlsafe(50)
ALLOWED_HOSTS = env.hosts("FLEET_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
PUBLIC_URL = env.url("FLEET_PUBLIC_URL", "http://127.0.0.1:8000", schemes=("http", "https"))
GATEWAY_URL = env.url("FLEET_GATEWAY_URL", "http://127.0.0.1:8001", schemes=("http",))
# Where clients find FLEET_STORE's objects/ by NFS, for classes that do not fetch their root whole; empty: no class may.
NFS_SHARE = env.nfs_share("FLEET_NFS_SHARE")
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
HTTPS = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^metrics$"]  # a monitor on this host speaks HTTP
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_NUMBER_FIELDS = 2000  # an order for a thousand clients is a form of as many fields

# Whoever brings it may read /metrics, of the web process and of the gateway; empty: nobody.
METRICS_TOKEN = env.text("FLEET_METRICS_TOKEN", "") and env.secret("FLEET_METRICS_TOKEN")

# --- agents: seconds, unless a name says otherwise -------------------------------------------------------------------
POLL_HOLD = env.number("FLEET_POLL_HOLD", 25, low=1, high=120)
POLL_SPREAD = env.number("FLEET_POLL_SPREAD", 5, low=0, high=60)
LOST_AFTER = env.number("FLEET_LOST_AFTER", 45, low=3, high=600)  # silence after which a client counts as lost
BOOT_TOKEN_LIFE = env.number("FLEET_BOOT_TOKEN_LIFE", 300, low=10, high=3600)
BOOT_LIMIT = env.number("FLEET_BOOT_LIMIT", 300, low=10, high=3600)  # a boot that takes longer is lost
CAPTURE_LIMIT = env.number("FLEET_CAPTURE_LIMIT", 900, low=2, high=3600)  # of packing and sending a home
PROTOCOL_FLOOR = env.number("FLEET_PROTOCOL_FLOOR", 1, low=1, high=3)  # that a daemon must speak at least
COMMAND_LIFE = env.number("FLEET_COMMAND_LIFE", 120, low=5, high=3600)  # to be accepted, and again to be proven

# What the sender signs within sixty seconds at the most, by verb, for all sites: read from the sender's own environment, so that neither a
# person nor whoever has taken the web process gets beyond it. 0: none.
CEILING = env.counts(
    "FLEET_CEILING",
    {
        "restart": 2000,
        "poweroff": 2000,
        "cycle": 20000,
        "capture": 60,
        "message": 20000,
        "wake": 2000,
        "wake-relay": 2000,
    },
)
SENDER_BOOK = env.path("FLEET_SENDER_BOOK", DATA / "sender" / "book.sqlite3")  # for the sender's eyes alone

# --- power on (docs/power.md) ---------------------------------------------------------------------------------------
# Where a gateway, as the site's boot host, broadcasts wake packets; none: it does not stand in any boot LAN.
WAKE_BROADCAST = env.addresses("FLEET_WAKE_BROADCAST", "255.255.255.255")
# Where the sender may reach power ports; none: nowhere. What a person enters as an address must lie there.
POWER_NETWORKS = env.networks("FLEET_POWER_NETWORKS")
# Their passwords, a file each in a directory for each site, readable by the sender alone.
POWER_CREDENTIALS = env.path("FLEET_POWER_CREDENTIALS", DATA / "power")

# --- Django ---------------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "agents",
    "images",
    "fleet",
    "rest_framework",
    "drf_spectacular",
    "fleet.apps.FleetAdminConfig",  # django.contrib.admin with our site
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "fleet.logs.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "fleet.csp.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "fleet.refusals.RefusalMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "fleet.urls"
ASGI_APPLICATION = "fleet.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTHENTICATION_BACKENDS = ["fleet.logins.ThrottledBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES: dict[str, dict[str, Any]] = {
    "default": env.database("FLEET_DATABASE_URL", f"sqlite:///{DATA / 'fleet.sqlite3'}")
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["ENGINE"] = "fleet.sqlite"
    # Several processes write: readers must not block the writer (WAL), a writer must queue before it reads (IMMEDIATE)
    # and wait for its turn instead of failing (timeout).
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # Recursive triggers: REPLACE is a DELETE too, which the triggers of append-only tables must see.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; "
        "PRAGMA recursive_triggers=ON;",
    }
else:
    DATABASES["default"] |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}

REDIS_URL = env.url("FLEET_REDIS_URL", "redis://127.0.0.1:6379/0", schemes=("redis", "rediss", "unix"))
CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_TASK_IGNORE_RESULT = True  # the database is the truth; nobody reads results
CELERY_TASK_ACKS_LATE = True  # every task is safe to run twice
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {"images.tasks.*": {"queue": "builds"}, "agents.tasks.send_*": {"queue": "sender"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 4 * 3600,  # longer than any build, or it would run twice
    "max_retries": 0,  # whoever orders does not wait for a Redis that is away: the clock sends what it lost
}
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA / "clock.schedule")
CELERY_BEAT_SCHEDULE = {
    "checkpoints": {"task": "agents.tasks.send_checkpoints", "schedule": 60.0, "options": {"expires": 60}},
    "agents": {"task": "agents.tasks.tick", "schedule": 2.0, "options": {"expires": 2}},
    "orders": {"task": "agents.tasks.send_due", "schedule": 2.0, "options": {"expires": 2}},
    "campaigns": {"task": "agents.tasks.step_campaigns", "schedule": 1.0, "options": {"expires": 1}},
    **{
        f"alive-{queue}": {
            "task": "fleet.tasks.say_alive",
            "schedule": 10.0,
            "args": [queue],
            "options": {"expires": 10, "queue": queue},
        }
        for queue in ("default", "sender", "builds")
    },
    "builds": {"task": "images.tasks.tick", "schedule": 10.0, "options": {"expires": 10, "queue": "default"}},
    "upgrades": {
        "task": "images.tasks.look_for_all_upgrades",
        "schedule": crontab(minute=20),  # each version once a day; hourly, for servers that are off at night
        "options": {"expires": 1800},
    },
    "store": {
        "task": "images.tasks.collect",
        "schedule": crontab(hour=4, minute=30),
        "options": {"expires": 12 * 3600},
    },
}
CELERY_TIMEZONE = "UTC"

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = "fleet.formats"

STATIC_URL = "/static/"
STATIC_ROOT = DATA / "static"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "fleet.api.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "fleet.api.pagination.CursorPage",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "fleet.api.problems.problem",
    "DEFAULT_THROTTLE_CLASSES": [
        "rest_framework.throttling.UserRateThrottle",
        "rest_framework.throttling.AnonRateThrottle",
    ],
    "DEFAULT_THROTTLE_RATES": {"user": "600/min", "anon": "60/min"},
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Stateless Fleet",
    "DESCRIPTION": "Read the fleet, its images and its audit log; order restarts, power-downs and cycles.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {
        "VersionStatus": "images.models.VersionStatus",
        "CommandStatus": "agents.models.CommandStatus",
        "SessionStatus": "agents.models.SessionStatus",
        "ClientState": "fleet.models.ClientState",
        "CampaignVerb": "agents.api.campaigns.VERBS",
        "Verb": "agents.models.Verb",
    },
}

# --- logs (fleet/logs.py) -------------------------------------------------------------------------------------------
LOG = env.choice("FLEET_LOG", "lines", ("lines", "json"))
LOG_LEVEL = env.choice("FLEET_LOG_LEVEL", "info", ("debug", "info", "warning")).upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": "fleet.logs.Lines"}, "json": {"()": "fleet.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG}},
    "root": {"handlers": ["console"], "level": "WARNING" if LOG_LEVEL == "WARNING" else "INFO"},
    "loggers": {
        **{app: {"level": LOG_LEVEL} for app in ("agents", "images", "fleet")},
        # They bring handlers of their own, and would say everything in another form.
        **{name: {"handlers": [], "propagate": True} for name in ("django", "uvicorn", "uvicorn.error")},
    },
}
