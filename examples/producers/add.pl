#!/usr/bin/perl
# Queues standard input as the value of KEY: a full producer, written from docs/protocol.md.    add.pl INBOX KEY <value
# Exit status 0: the value is queued and flushed. Else it may or may not be, as the message says: queue it again.
# It knows no delays, no if_waiting and no bounds (docs/protocol-options.md): fsinbox add does, fsinbox-add in part.
use strict;
use warnings;
use Compress::Raw::Zlib 'crc32';
use Fcntl qw(:DEFAULT :flock :seek);
use IO::Handle;
use Time::HiRes qw(lstat sleep time);    # times with their fractions
use constant { HIGHEST => 9_000_000_000_000_000_000, DAY => 86400e9 };
use constant IGNORED => qr/\.(?:tmp|part|partial|filepart|crdownload|download|opdownload|aria2|sw[pox])\z|~\z
    |^~syncthing~|\.~|^~\$|^\#.*\#\z|^(?:4913|thumbs\.db|desktop\.ini)\z/isx;    # names in drop\/ that are nobody's
use constant { F_SETSIG => 10, F_SETLEASE => 1024, SIGURG => 23, BTRFS_IOC_SYNC => 0x9408 };

my ($inbox, $key) = @ARGV == 2 ? @ARGV : die "usage: add.pl INBOX KEY <value\n";
(my $encoded = $key) =~ s/([^A-Za-z0-9._\-+@=,]|^\.)/sprintf '%%%02X', ord $1/ge;
die "the key needs 1 to 200 bytes as a file name\n" if $encoded eq '' or length $encoded > 200;
chdir $inbox or die "$inbox: $!\n";
-l || !-d and die "$inbox/$_ is not a directory\n" for qw(tmp drop pending inflight deferred failed);
my $mode = (lstat 'tmp')[2] & 0666;
die "$inbox is not an inbox of format 2, for one host\n" if line_of('format') ne 'fsinbox 2 local';
die "$inbox lies where other hosts may use it, too\n"
    if !((stat '.')[0] >> 8 & 4095) && qx(stat -f -c %T .) =~ /^(?:nfs|cifs|smb|fuse|v9fs|ceph|lustre|gpfs|ocfs2|gfs)/;
my $boot = substr line_of('/proc/sys/kernel/random/boot_id'), 0, 8;

# 1. Before the section: write the value, flush it; look at drop/.
my $temporary = sprintf 'tmp/pl.%d.%.0f', $$, time * 1e6;
sysopen my $file, $temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, $mode or die "$temporary: $!\n";
my $is_ours = 1;
END { unlink $temporary if $is_ours }
binmode STDIN;
my $value = do { local $/; <STDIN> } // '';
die "cannot read the value: $!\n" if STDIN->error;
print $file $value and $file->flush and chmod $mode, $file and $file->sync and close $file or die "$temporary: $!\n";
$key =~ m{/} && -e 'subfolders' && -f "drop/$key" and die "drop/$key may be older: use fsinbox add\n";
my $dropped = $key !~ m{/|^\.} && finished("drop/$key");

# 2. The section: lock, find the place or give out a number, publish.
my $index;
do {
    sysopen $index, 'index', O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, $mode or die "index: $!\n";
    flock $index, LOCK_EX or die "index: $!\n";
} until (stat $index)[3];    # 0: it was removed while we waited
-f _ and (stat _)[3] == 1 or die "index is not a regular file with one name: remove it\n";
my ($last, $lines) = header();
my ($number, $line) = $lines ? look_up() : ();
if (!$number) {
    $number = int(time * 1e6) * 1000;
    $number = $last + 1 if $number <= $last or $number >= HIGHEST;
    put(0, sprintf "%-63s\n", sprintf '%019d %s %010d', $number, $boot, $lines);    # first the header, then the line
    put($line, sprintf "%010d %019d \n", crc32($encoded), $number) if defined $line;
}
my $element = sprintf 'pending/%019d-%s', $number, $encoded;
$dropped and !rename "drop/$key", $element and !$!{ENOENT} and die "drop/$key: $!\n";    # (gone: it was ingested)
rename $temporary, $element or die "$element: $!\n";
close $index;

# 3. After it: flush the folders.
$is_ours = 0;
for my $folder ('pending', $dropped ? 'drop' : ()) {
    my $unsure = "the value may or may not be queued\n";
    sysopen my $fd, $folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW or die "$folder: $!: $unsure";
    ioctl $fd, BTRFS_IOC_SYNC, 0 or $!{ENOTTY} && $fd->sync or die "$folder: $!: $unsure";
}

sub header {    # (last number, lines of a table that is of this boot)
    sysread $index, my $header, 64;
    my ($last, $tag, $lines) = $header =~ /\A([0-8]\d{18}) ([!-~]{8}) (\d{10}) {24}\n\z/a;
    ($last, $tag, $lines) = (0, '', 0) if !defined $last or $lines % 32;    # damaged
    return ($last, -s $index >= 64 + 32 * $lines ? 0 + $lines : 0) if $tag eq $boot;
    my $limit = ($last > time * 1e9 ? $last : time * 1e9) + DAY;
    for my $folder (qw(pending failed inflight deferred)) {
        opendir my $names, $folder or die "$folder: $!\n";
        my $form = $folder eq 'deferred' ? qr/\A\d{19}-(\d{19})-./as : qr/\A(\d{19})-./as;
        my $believed = $folder =~ /^[id]/ ? HIGHEST - 1 : $limit;    # only a consumer puts anything into these two
        for (map { /$form/ } readdir $names) { $last = $_ if $_ > $last and $_ <= $believed }
    }
    return ($last, 0);    # a new table is left to others
}

sub look_up {    # (number at which the key waits, or 0; offset of the line to write for another number, if any)
    my ($home, $window, %own, @blank) = 64 + 1024 * (crc32($encoded) % ($lines / 32));
    sysseek $index, $home, SEEK_SET and sysread $index, $window, 1024 or die "index: $!\n";
    for my $at (map { 32 * $_ } 0 .. 31) {
        my $line = substr $window, $at, 32;
        push @blank, $at if $line =~ /\0/;
        $own{$2} = $at if $line =~ /\A(\d{10}) ([0-8]\d{18}) \n\z/a and $1 == crc32($encoded);
    }
    my @numbers = sort keys %own;
    -l "pending/$_-$encoded" || -e _ and return $_ for reverse @numbers;
    my ($at) = ((map { $own{$_} } @numbers), @blank);    # the lowest of its own, else the first blank one, else none
    return (0, defined $at ? $home + $at : undef);
}

sub finished {    # whether a file in drop/ is finished; it is flushed then
    my ($path, @seen) = ($_[0], lstat $_[0]);
    return 0 if !-f _;
    my ($owner, @patterns) = ((stat '.')[4], lstat 'drop/.fsinboxignore');    # (others may have put it there)
    die "$path may be ignored by drop/.fsinboxignore: use fsinbox add\n" if -f _ && grep { $_ == $patterns[4] } 0, $owner;
    return 0 if $key =~ IGNORED;
    my $can_read = sysopen my $fd, $path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
    fcntl $fd, F_SETSIG, SIGURG if $can_read;    # in place of SIGIO, which kills: a writer that comes now sends it
    if ($can_read && fcntl $fd, F_SETLEASE, F_RDLCK) { fcntl $fd, F_SETLEASE, F_UNLCK }
    elsif ($can_read && $!{EAGAIN}) { return 0 }    # it is being written
    elsif ($seen[10] <= $seen[9]) {                 # nothing tells: look again
        sleep 5;
        my @now = lstat $path;
        return 0 if !@now or "@now[1, 7, 9]" ne "@seen[1, 7, 9]";
    }
    return !$can_read || $fd->sync || die "$path: $!\n";
}

sub put {    # at an offset of the index
    sysseek $index, $_[0], SEEK_SET and (syswrite($index, $_[1]) // 0) == length $_[1] or die "index: $!\n";
}

sub line_of {
    open my $file, '<', $_[0] or die "$_[0]: $!\n";
    sysread $file, my $text, 100;
    return $text =~ s{\n.*}{}sr;
}
